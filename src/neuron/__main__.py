"""``python -m neuron``"""

from neuron.cli import cli


def main() -> None:
    """The console script."""
    cli(prog_name="neuron")


if __name__ == "__main__":
    main()
