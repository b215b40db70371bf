"""The command line of neuron, and the only module of neuron that prints."""

import logging
import sys
from pathlib import Path

import click
import msgspec

from neuron import __version__, config
from protocol.bus import BusSetupError
from protocol.errors import FleetError, first_of
from protocol.runtime import loop
from protocol.runtime.settings import SettingsError

EX_CONFIG = 78


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="neuron")
def cli() -> None:
    """The service of one GPU host: loads models and serves them to the fleet."""


@cli.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="neuron.toml")
@click.option("--name", help="Name of this node in the fleet; default: the host's name.")
@click.option("--nats", "nats_url", help="URL of the NATS server.")
@click.option("--nats-token-file", help="File with the NATS token.")
@click.option("--listen", help="HOST:PORT of /health and /metrics.")
@click.option(
    "--model", "models", multiple=True, metavar="ID_OR_FOLDER", help="Model to load at start."
)
@click.option(
    "--model-dir", "model_dirs", multiple=True, metavar="DIR", help="Folder of models to offer."
)
@click.option("--memory-mb", type=click.IntRange(1), help="Memory for models on each device.")
@click.option("--device", help="auto, cpu or cuda:N.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.")
@click.option("--slots", type=click.IntRange(1), help="Sequences per model that run at once.")
@click.option("--max-context", type=click.IntRange(1), help="Limit on prompt plus answer.")
@click.option("--threads", type=click.IntRange(1), help="Compute threads on a CPU.")
def serve(
    path: Path | None,
    models: tuple[str, ...],
    model_dirs: tuple[str, ...],
    **given: str | int | None,
) -> None:
    """Serve models to the fleet.

    \b
    Examples:
      neuron serve --nats nats://10.0.0.5:4222 --nats-token-file /etc/neuron/token
      neuron serve --model /srv/models/Qwen3-8B --model cortex-demo
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    from neuron.serve import serve as run_neuron

    chosen: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    if models:
        chosen["default_models"] = models
    if model_dirs:
        chosen["model_dirs"] = model_dirs
    try:
        settings = msgspec.structs.replace(config.load(path), **chosen)
        loop.run(run_neuron(settings))
    except KeyboardInterrupt:
        sys.exit(130)
    except (Exception, BaseExceptionGroup) as error:
        reason = first_of(error, (SettingsError, BusSetupError, FleetError, ConnectionError))
        if reason is None:
            raise
        click.echo(f"neuron: {reason}", err=True)
        sys.exit(EX_CONFIG if isinstance(reason, SettingsError) else 1)


@cli.command("tp-check")
@click.option("--device", "devices", multiple=True, help="cpu or cuda:N; one for each rank.")
@click.option(
    "--ranks", type=click.IntRange(2, 16), help="Number of ranks; default: all GPUs, else 2."
)
def tp_check(devices: tuple[str, ...], ranks: int | None) -> None:
    """Check whether this host's devices can share a model (tensor parallelism).

    The ranks connect, sum tensors, measure how long that takes, and compute the demo model
    together. Nothing else is touched, so a node may keep running meanwhile.

    \b
    Examples:
      neuron tp-check
      neuron tp-check --device cuda:0 --device cuda:2
    """
    from neuron import tp_check as checks

    try:
        chosen = checks.chosen_devices(devices, ranks)
    except ValueError as error:
        click.echo(f"neuron: {error}", err=True)
        sys.exit(1)
    click.echo(f"{len(chosen)} ranks: {', '.join(chosen)}")
    verdict = checks.check(chosen, click.echo)
    click.echo(verdict)
    sys.exit(1 if verdict is checks.Verdict.FAILS else 0)
