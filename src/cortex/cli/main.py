"""The command line of cortex, the only part of the gateway that prints."""

import logging
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec

from cortex import __version__, config
from cortex.cli import fleet
from cortex.cli.spy import EVERYTHING, follow
from cortex.local.supervisor import EX_CONFIG
from protocol.bus import BusSetupError
from protocol.errors import first_of
from protocol.runtime import logs, loop
from protocol.runtime.settings import SettingsError, read_token


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cortex")
def cli() -> None:
    """Serve every model of your GPU machines through one endpoint."""


@cli.command()
@click.option(
    "--port", default=31313, show_default=True, help="Port of the API; 0 = any free port."
)
@click.option(
    "--metrics-port",
    default=31314,
    show_default=True,
    help="Port of the Prometheus metrics; 0 = any free port.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory.")
@click.option(
    "--neurons",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Number of neurons to start.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="ID_OR_FOLDER",
    help="Model to load: a folder or a Hugging Face id. May be repeated.",
)
@click.option(
    "--model-dir",
    "model_dirs",
    multiple=True,
    metavar="DIR",
    help="Folder with models, each of which is loaded when it is asked for. May be repeated.",
)
@click.option(
    "--neuron-config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="neuron.toml with the settings of the neurons: models, memory and so on.",
)
@click.option("--memory-mb", type=click.IntRange(1), help="Memory for models on each device.")
@click.option("--device", help="auto, cpu or cuda:N.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.")
@click.option("--slots", type=click.IntRange(1), help="Sequences per model that run at once.")
@click.option("--max-context", type=click.IntRange(1), help="Limit on prompt plus answer.")
def up(
    port: int,
    metrics_port: int,
    host: str,
    data: Path | None,
    neurons: int,
    models: tuple[str, ...],
    model_dirs: tuple[str, ...],
    neuron_config: Path | None,
    **given: str | int | None,
) -> None:
    """Start a whole fleet on this machine.

    The fleet is nats-server, a gateway and neurons; each of them is restarted if it dies. Without
    --model and --model-dir it serves the bundled demo model.

    \b
    Examples:
      cortex up
      cortex up --model Qwen/Qwen3-0.6B
      cortex up --model-dir ~/models --memory-mb 20000
      cortex up --neuron-config ~/neuron.toml
      cortex up --model ~/models/my-model --neurons 2 --port 0
    """
    from cortex.local.up import UpOptions
    from cortex.local.up import up as run_up

    options = UpOptions(
        port=port,
        metrics_port=metrics_port,
        host=host,
        data=(data or config.default_data_dir()).expanduser().absolute(),
        neurons=neurons,
        models=models,
        model_dirs=model_dirs,
        neuron_config=neuron_config.expanduser().absolute() if neuron_config else None,
        neuron_settings={name: str(value) for name, value in given.items() if value is not None},
    )
    logs.set_up(logging.WARNING)
    sys.exit(_run(run_up(options, click.echo)))


@cli.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="cortex.toml")
@click.option("--nats", "url", help="URL of the NATS server.")
@click.option("--nats-token-file", help="File with the NATS token.")
@click.option("--listen", help="HOST:PORT of the API.")
@click.option("--metrics-listen", help="HOST:PORT of the Prometheus metrics.")
@click.option("--models", "models_path", help="models.toml: profiles and aliases of models.")
def serve(
    path: Path | None,
    url: str | None,
    nats_token_file: str | None,
    listen: str | None,
    metrics_listen: str | None,
    models_path: str | None,
) -> None:
    """Run a gateway that connects to your NATS server.

    SIGHUP makes it read models.toml again.

    \b
    Examples:
      cortex serve --config /etc/cortex/cortex.toml
      cortex serve --nats nats://127.0.0.1:4222 --listen 0.0.0.0:31313
    """
    logs.set_up(logging.INFO)
    from cortex.serve import serve as run_gateway

    async def main() -> int:
        settings = config.load(path)
        gateway, nats = settings.gateway, settings.nats
        gateway = _replaced(gateway, listen=listen, metrics_listen=metrics_listen)
        nats = _replaced(nats, url=url, token_file=nats_token_file)
        file = models_path or settings.models_config
        await run_gateway(
            msgspec.structs.replace(settings, gateway=gateway, nats=nats, models_config=file)
        )
        return 0

    sys.exit(_run(main()))


@cli.command()
@click.argument("subject", default=EVERYTHING)
@click.option(
    "--nats",
    "url",
    default="nats://127.0.0.1:4222",
    show_default=True,
    help="URL of the NATS server.",
)
@click.option("--nats-token-file", default="", help="File with the NATS token.")
@click.option("--heartbeats", is_flag=True, help="Show heartbeats too, two a second from each.")
def spy(subject: str, url: str, nats_token_file: str, heartbeats: bool) -> None:
    """Show what travels on the bus, one line per message, until Ctrl-C.

    SUBJECT is a NATS subject and may have wildcards; without one, everything is shown.

    \b
    Examples:
      cortex spy --nats nats://10.0.0.5:4222 --nats-token-file token
      cortex spy 'cortex.job.>' --heartbeats
    """

    async def main() -> int:
        token = read_token(nats_token_file)
        await follow(url, token, click.echo, subject=subject, heartbeats=heartbeats)
        return 0

    sys.exit(_run(main()))


def _replaced(struct: Any, **values: object) -> Any:
    return msgspec.structs.replace(struct, **{k: v for k, v in values.items() if v is not None})


def _run(main: Coroutine[Any, Any, int]) -> int:
    """Runs *main*; an error that the user can fix becomes one line and an exit code, never a stack
    trace.

    EX_CONFIG tells a supervisor that another try cannot help.
    """
    try:
        return loop.run(main)
    except KeyboardInterrupt:
        return 130
    except (Exception, BaseExceptionGroup) as error:
        reason = first_of(error, (SettingsError, BusSetupError, ConnectionError))
        if reason is None:
            raise
        click.echo(f"cortex: {reason}", err=True)
        return EX_CONFIG if isinstance(reason, SettingsError) else 1


fleet.add_to(cli)
