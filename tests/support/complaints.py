"""What asyncio and nats-py only write into their logs: errors that nobody was there to hear."""

import gc
import logging
from typing import Self

LOGGERS = ("asyncio", "nats")


class Complaints(logging.Handler):
    """All of them, from :meth:`__enter__` to :meth:`__exit__`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: list[str] = []

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record with its stack trace."""
        self._heard.append(logging.Formatter("%(name)s: %(message)s").format(record))

    def heard(self) -> list[str]:
        """Everything so far; of tasks and futures that are garbage, too."""
        gc.collect()
        return self._heard
