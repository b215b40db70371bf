"""The reasons why a model cannot be loaded.

No torch, so that the service can check a checkpoint's headers without starting an engine.
"""

from enum import StrEnum


class LoadCode(StrEnum):
    """The kind of problem that stopped a load."""

    NOT_FOUND = "not_found"
    """The folder, its config.json or a shard is missing."""
    CORRUPT = "corrupt"
    """Files exist, but are damaged or contradict each other."""
    UNSUPPORTED = "unsupported"
    """The checkpoint is sound, but this engine cannot run it."""
    OUT_OF_MEMORY = "out_of_memory"
    """The weights or a minimal KV cache do not fit."""
    CRASHED = "crashed"
    """The engine process ended while it was loading."""
    TIMEOUT = "timeout"
    """The load made no progress within its deadline."""


class LoadError(Exception):
    """Raised when a checkpoint cannot be loaded; *message* is written for people.

    It says what happened, why (with the numbers) and what to do.
    """

    def __init__(self, code: LoadCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def contradiction(what: str) -> LoadError:
    """A CORRUPT error: *what* in config.json cannot be true."""
    return LoadError(
        LoadCode.CORRUPT,
        f"config.json is invalid: {what}. Correct it, or download the model again.",
    )


def unsupported(what: str, remedy: str) -> LoadError:
    """An UNSUPPORTED error because of *what*; *remedy* says what would work."""
    return LoadError(LoadCode.UNSUPPORTED, f"This engine cannot run the model: {what}. {remedy}")
