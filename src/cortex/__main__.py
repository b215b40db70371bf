"""Entry point of ``python -m cortex``."""

from cortex.cli.main import cli


def main() -> None:
    """Runs the console script."""
    cli(prog_name="cortex")


if __name__ == "__main__":
    main()
