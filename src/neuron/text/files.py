"""Reads the small JSON files of a model folder into checked structures.

Owns the errors for files that exist but are wrong: each names the file and the key. Knows nothing
about what the files mean.
"""

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from protocol.errors import ErrorCode, FleetError
from protocol.runtime.bounded_files import read_bounded

T = TypeVar("T")

MAX_CONFIG_BYTES = 64 << 20
"""Limit on a JSON file; some list every added token."""


def read_config(path: Path, shape: type[T]) -> T | None:
    """Returns the JSON object in *path* as *shape*, or None when there is no such file.

    Raises :class:`FleetError` (INVALID_REQUEST) for a file that is not a JSON object, or in which a
    key of *shape* has another type.
    """
    try:
        # not with msgspec's parser: Python programs write NaN and Infinity into these files
        content = json.loads(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise broken(path, f"the content cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise broken(path, f"the content cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        kind = "null" if content is None else f"a JSON {type(content).__name__}"
        raise broken(path, f"the content is {kind} instead of an object")
    try:
        return msgspec.convert(content, shape)
    except msgspec.ValidationError as error:
        raise broken(path, _with_key(str(error))) from error


def broken(path: Path, why: str) -> FleetError:
    """The error for a model file that exists but cannot be used."""
    return FleetError(
        ErrorCode.INVALID_REQUEST,
        f"The model folder {path.parent} cannot be used: in {path.name}, {why}. "
        f"Correct that file or download the model again.",
        param="model",
    )


def _with_key(message: str) -> str:
    """Turns msgspec's ``Expected … - at `$.top_k``` into ``key 'top_k': expected …``."""
    problem, _, place = message.partition(" - at ")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    return f"key {key!r}: {problem[:1].lower()}{problem[1:]}" if key else problem
