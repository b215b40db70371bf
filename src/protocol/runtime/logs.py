"""Logging set-up: one line per event on stderr."""

import logging


def set_up(level: int) -> None:
    """Sets up local times (UTC would confuse at a terminal), level, logger and message."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
