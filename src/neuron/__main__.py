"""Entry point of ``python -m neuron`` and of the console script."""

from neuron.cli import cli


def main() -> None:
    """Runs the command line under the name ``neuron``."""
    cli(prog_name="neuron")


if __name__ == "__main__":
    main()
