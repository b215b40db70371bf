"""Reads TOML into frozen Structs, with errors for the person who wrote the file.

Unknown keys are refused: a mistyped key that is silently ignored is the worst kind of
configuration. ``cortex.toml:12: gateway.lisen: unknown key. Did you mean 'listen'?``
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from protocol.runtime.validation_errors import split_error

T = TypeVar("T", bound=msgspec.Struct)


class SettingsError(Exception):
    """Raised for a setting that cannot be used; the message is one line for people."""


def load_or_default(path: Path | None, usual: Path, kind: type[T]) -> T:
    """Reads the file's settings; the defaults if no file is named and the *usual* one does not
    exist.

    Raises :class:`SettingsError`.
    """
    if path is None and not usual.exists():
        return kind()
    return load(path or usual, kind)


def read_token(path: str) -> str:
    """Reads a NATS token from a file; empty if there is none. Raises :class:`SettingsError`."""
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the NATS token file {path} cannot be read: {error}.") from None


def load(path: Path, kind: type[T]) -> T:
    """Reads *path* as *kind* (a Struct with ``forbid_unknown_fields``)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text.") from None
    return parse(text, kind, str(path))


def parse(text: str, kind: type[T], name: str) -> T:
    """Parses TOML *text* as *kind*; *name* is the file's name in errors."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = f":{where[1]}" if where else ""
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise SettingsError(f"{name}{line}: {what}.") from None
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), text, kind, name)) from None


def _explain(sentence: str, text: str, kind: type[msgspec.Struct], name: str) -> str:
    what, path = split_error(sentence)
    unknown = re.search(r"unknown field `([^`]+)`", what)
    if unknown:
        allowed = _fields_at(kind, path)
        path = f"{path}.{unknown[1]}".lstrip(".")
        close = difflib.get_close_matches(unknown[1], allowed, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        what = f"unknown key. {hint}Allowed: {', '.join(allowed)}"
    line = _line_of(text, path)
    return f"{name}{f':{line}' if line else ''}: {path}: {what}.".replace(": : ", ": ")


def _fields_at(kind: type[msgspec.Struct], path: str) -> list[str]:
    """Lists the keys that are allowed in the table at *path*."""
    current: object = kind
    for step in [s for s in re.split(r"[.\[]", path) if s and not s.endswith("]")]:
        for field in msgspec.structs.fields(current):  # type: ignore[arg-type]
            if field.encode_name == step:
                current = field.type
    arguments = [a for a in getattr(current, "__args__", ()) if hasattr(a, "__struct_fields__")]
    if arguments:
        current = arguments[0]
    return [f.encode_name for f in msgspec.structs.fields(current)]  # type: ignore[arg-type]


def _line_of(text: str, path: str) -> int:
    """Finds the line of a key in simple TOML; 0 for a notation that this does not follow."""
    *tables, key = path.split(".")
    table = ".".join(re.sub(r"\[.*", "", t) for t in tables)
    key = re.sub(r"\[.*", "", key)
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[{1,2}\s*([^\]]+?)\s*\]", line)
        if header:
            current = header[1]
            if current == f"{table}.{key}".lstrip("."):
                return number
        elif current == table and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return number
    return 0
