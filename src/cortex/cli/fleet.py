"""The commands that query or instruct a running fleet, through its gateway. They print, as ``main``
does."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from cortex.cli import tables
from cortex.gateway_client import GatewayClient, GatewayClientError, table

T = TypeVar("T")
_ANNOUNCED_SECONDS = 10.0
"""Limit for a node that accepted an order to show it in its records; it usually takes far less."""

_url = click.option(
    "--url", default="http://127.0.0.1:31313", show_default=True, help="The gateway's address."
)
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_node = click.option("--node", default="", help="On this node.")


def add_to(group: click.Group) -> None:
    """Adds all commands of this module to *group*."""
    for command in (
        status,
        ps,
        models,
        nodes,
        show,
        load,
        unload,
        pull,
        pin,
        unpin,
        drain,
        undrain,
        add,
        remove,
        read_again,
        why,
        watch,
    ):
        group.add_command(command)


@click.command()
@_url
@_json
def status(url: str, as_json: bool) -> None:
    """Show the state of the fleet."""
    _listed(GatewayClient(url).fleet, tables.status, as_json)


@click.command()
@_url
@_json
def ps(url: str, as_json: bool) -> None:
    """List the models that are loaded or loading."""
    fleet = _asked(GatewayClient(url).fleet)
    if as_json:
        click.echo(json.dumps([m["record"] for _, m in tables.models_of(fleet)], indent=2))
        return
    lines = tables.ps(fleet)
    click.echo(
        "\n".join(lines)
        if len(lines) > 1
        else "No model is loaded. List all models with: cortex models"
    )


@click.command()
@_url
@_json
def models(url: str, as_json: bool) -> None:
    """List the models of a running fleet, loaded or not.

    \b
    Examples:
      cortex models
      cortex models --json
    """
    found = _asked(GatewayClient(url).models)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found:
        click.echo("\n".join(table(found)))
    else:
        click.echo("No node offers a model yet. Start one with: neuron serve --model FOLDER_OR_ID")


@click.command()
@_url
@_json
def nodes(url: str, as_json: bool) -> None:
    """List the nodes with their memory."""
    fleet = _asked(GatewayClient(url).fleet)
    if as_json:
        click.echo(json.dumps(fleet["nodes"], indent=2))
        return
    lines = tables.nodes(fleet)
    click.echo(
        "\n".join(lines) if len(lines) > 1 else "No node is running. Start one with: neuron serve"
    )


@click.command()
@click.argument("model")
@_url
@_json
def show(model: str, url: str, as_json: bool) -> None:
    """Show everything known about a model, node by node."""
    fleet = _asked(GatewayClient(url).fleet)
    found = [m for _, m in tables.models_of(fleet) if m["record"]["model"] == model]
    if not found:
        _fail(f"no node offers {model!r}. See: cortex models")
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(tables.show(fleet, model)))


@click.command()
@click.argument("model")
@_url
@click.option("--node", default="", help="Node to load it on; default: where it fits best.")
@click.option("--source", default="", help="A folder on the node, or a Hugging Face id.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only show where it would be loaded, and what would be evicted for it.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
def load(model: str, url: str, node: str, source: str, dry_run: bool, no_wait: bool) -> None:
    """Load a model, evicting idle ones if necessary.

    \b
    Examples:
      cortex load Qwen/Qwen3-8B
      cortex load Qwen/Qwen3-8B --dry-run
      cortex load mine --node beast --source /srv/models/mine
    """
    operator = GatewayClient(url)
    asked = {"model": model, "node": node, "source": source, "dry_run": dry_run}
    taken = _asked(lambda: operator.tell("/models/load", **asked))
    if dry_run:
        click.echo("\n".join(tables.plan(taken)))
        sys.exit(0 if taken["fits"] else 1)
    where = taken["nodes"][0]
    goes = f", evicting {', '.join(taken['victims'])}" if taken["victims"] else ""
    click.echo(f"{taken['model']} on {where}: load ordered{goes}")
    if not no_wait:
        _follow(operator, taken["model"], where)


def _follow(operator: GatewayClient, model: str, node: str) -> None:
    """Prints the model's progress until it is ready or has failed."""
    said, seen_at = "", time.monotonic()
    while True:
        time.sleep(0.5)
        fleet = _asked(operator.fleet)
        here = (m["record"] for n, m in tables.models_of(fleet) if n["node"] == node)
        now = next((r for r in here if r["model"] == model and r["state"] != "absent"), None)
        if now is None:
            if time.monotonic() - seen_at > _ANNOUNCED_SECONDS:
                _fail(
                    f"{model} was not loaded on {node}, or was unloaded again; see that node's log."
                )
            continue
        seen_at = time.monotonic()
        if tables.event(now) != said:
            said = tables.event(now)
            click.echo(said)
        if now["state"] in ("ready", "failed"):
            sys.exit(1 if now["state"] == "failed" else 0)


@click.command()
@click.argument("model")
@_url
@_node
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    help="After this time, running answers move to another node; 0 = no limit.",
)
@click.option("--force", is_flag=True, help="Unload it even if it is pinned.")
def unload(model: str, url: str, node: str, drain_seconds: float, force: bool) -> None:
    """Unload a model; running answers are not cut.

    \b
    Examples:
      cortex unload Qwen/Qwen3-8B
      cortex unload Qwen/Qwen3-8B --node beast --drain-seconds 30
    """
    body = {"model": model, "node": node, "drain_seconds": drain_seconds, "force": force}
    _told(url, "/models/unload", "being unloaded", **body)


@click.command()
@click.argument("model")
@_url
@click.option("--node", default="", help="Node to fetch them to; default: all.")
@click.option("--source", default="", help="A Hugging Face id; default: the model's own.")
def pull(model: str, url: str, node: str, source: str) -> None:
    """Fetch a model's files to the nodes, without loading it."""
    _told(url, "/models/pull", "being fetched", model=model, node=node, source=source)


@click.command()
@click.argument("model")
@_url
@click.option(
    "--node",
    "on",
    multiple=True,
    help="Node to pin it on; default: where it is loaded. May be repeated.",
)
def pin(model: str, url: str, on: tuple[str, ...]) -> None:
    """Keep a model loaded: it is never evicted, and loaded again if it is lost."""
    _told(url, "/models/pin", "pinned", model=model, nodes=on)


@click.command()
@click.argument("model")
@_url
@_node
def unpin(model: str, url: str, node: str) -> None:
    """Unpin a model: it may be evicted when its memory is needed."""
    _told(url, "/models/unpin", "no longer pinned", model=model, node=node)


@click.command()
@click.argument("node")
@_url
def drain(node: str, url: str) -> None:
    """Drain a node: its models are unloaded as their streams end, and none are loaded."""
    _asked(lambda: GatewayClient(url).tell(f"/nodes/{node}/drain"))
    click.echo(f"{node}: draining. Use it again with: cortex undrain {node}")


@click.command()
@click.argument("node")
@_url
def undrain(node: str, url: str) -> None:
    """Let a drained node take models again."""
    _asked(lambda: GatewayClient(url).tell(f"/nodes/{node}/undrain"))
    click.echo(f"{node}: in use again")


@click.command()
@click.argument("model")
@_url
@click.option("--source", default="", help="A folder on the nodes, or a Hugging Face id.")
@click.option("--alias", "aliases", multiple=True, help="Another name. May be repeated.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of models.toml. May be repeated.",
)
def add(
    model: str, url: str, source: str, aliases: tuple[str, ...], pairs: tuple[str, ...]
) -> None:
    """Add a model to the catalogue; it stays there across restarts.

    \b
    Examples:
      cortex add Qwen/Qwen3-8B --alias fast
      cortex add mine --source /srv/models/mine --set slots=16 --set limit.output=4096
    """
    profile: dict[str, Any] = {"id": model}
    profile |= {"source": source} if source else {}
    profile |= {"aliases": aliases} if aliases else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            _fail(f"--set {pair}: must be KEY=VALUE, such as slots=16")
        *sections, last = key.split(".")
        place = profile
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = _value(text)
    _asked(lambda: GatewayClient(url).tell("/models/add", **profile))
    click.echo(f"{model}: added to the catalogue")


def _value(text: str) -> Any:
    """Reads a value as JSON if possible, otherwise as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@click.command()
@click.argument("model")
@_url
def remove(model: str, url: str) -> None:
    """Remove a model from the catalogue that was added with 'add'."""
    _asked(lambda: GatewayClient(url).tell("/models/remove", model=model))
    click.echo(f"{model}: removed from the catalogue")


@click.command("reload")
@_url
def read_again(url: str) -> None:
    """Make the gateway read models.toml again."""
    _asked(lambda: GatewayClient(url).tell("/reload"))
    click.echo("models.toml: read")


@click.command()
@click.argument("request")
@_url
@_json
def why(request: str, url: str, as_json: bool) -> None:
    """Explain what became of a request, by the id in its answer or its headers."""
    _listed(lambda: GatewayClient(url).request(request), tables.request, as_json)


@click.command()
@_url
@_json
def watch(url: str, as_json: bool) -> None:
    """Show every change of a model's state until Ctrl-C."""
    operator = GatewayClient(url)
    try:
        for record in operator.events():
            click.echo(json.dumps(record) if as_json else tables.event(record))
    except KeyboardInterrupt:
        sys.exit(130)
    except GatewayClientError as error:
        _fail(str(error))


def _told(url: str, path: str, what: str, **body: Any) -> None:
    taken = _asked(lambda: GatewayClient(url).tell(path, **body))
    click.echo(f"{taken['model']} on {', '.join(taken['nodes'])}: {what}")


def _listed(
    ask: Callable[[], dict[str, Any]], lines: Callable[[dict[str, Any]], list[str]], as_json: bool
) -> None:
    found = _asked(ask)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def _asked(ask: Callable[[], T]) -> T:
    """Returns the gateway's answer, or prints its reason and exits."""
    try:
        return ask()
    except GatewayClientError as error:
        _fail(str(error))


def _fail(why: str) -> NoReturn:
    click.echo(f"cortex: {why}", err=True)
    sys.exit(1)
