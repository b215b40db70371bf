"""Finds a model's files: from a source, as the configuration names it, to a complete folder.

Owns the spelling of sources, what a complete model folder must contain, and the digest that
identifies a folder's content; downloads belong to ``hub``. Must not know tensors, devices or a
model's life.

A source is ``cortex-demo`` (or ``demo``), a folder, ``org/name[@revision]`` on the Hub, or
``NAME=`` followed by one of these.
"""

import asyncio
import errno
import hashlib
import importlib.resources
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from neuron.files import hub
from neuron.models.checkpoint import INDEX, MAX_HEADER_BYTES, MAX_INDEX_BYTES, SINGLE
from protocol.errors import ErrorCode, FleetError
from protocol.names import InvalidName, check_model_id
from protocol.runtime.bounded_files import UnsuitableFile, read_bounded

log = logging.getLogger("neuron")

DEMO_ID = "cortex-demo"

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(.+))?", re.ASCII)
_SHARD = re.compile(r".*-\d+-of-(\d+)\.safetensors")
_SAMPLES = 8
_SAMPLE_BYTES = 4096
_MAX_DIGESTED_BYTES = 256 << 20
"""Limit on each small file; the largest tokenizers have 35 MiB."""
_OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
_DIGESTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)


def model_id(source: str) -> str:
    """The name under which the fleet knows *source*.

    Raises :class:`FleetError` (MODEL_NOT_FOUND) for a source that has no usable name.
    """
    return _Source.parse(source).id


async def resolve(
    source: str, on_progress: hub.OnProgress, *, download: hub.Download | None = None
) -> Path:
    """Returns the complete folder of *source*, downloaded from the Hub if necessary.

    *on_progress* is called in the event loop's thread, and never after this returned or was
    cancelled. Raises :class:`FleetError`: MODEL_NOT_FOUND when files are missing or are not a
    model, MODEL_UNAVAILABLE when they cannot be fetched now.
    """
    where = _Source.parse(source)
    if where.folder is not None:
        await asyncio.to_thread(_check, where.folder)
        return where.folder
    transfer = hub.Transfer(on_progress)
    try:
        return await asyncio.to_thread(
            hub.fetch, where.repo, where.revision, transfer, _check, download
        )
    finally:
        transfer.wanted = False


def local_folder(source: str) -> Path | None:
    """The folder of *source* if all its files are on this host; None = they are only on the Hub.

    Runs in a thread. Raises :class:`FleetError` for a folder that is missing or incomplete.
    """
    where = _Source.parse(source)
    if where.folder is not None:
        _check(where.folder)
        return where.folder
    return hub.cached(where.repo, where.revision, _check)


def folders_in(place: Path) -> list[Path]:
    """Folders below *place* that look like models, up to two levels deep (``org/name``)."""
    try:
        return sorted(
            path.parent
            for pattern in ("*/config.json", "*/*/config.json")
            for path in place.glob(pattern)
            if any(path.parent.glob("*.safetensors"))
        )
    except OSError as error:
        log.warning("%s cannot be read: %s", place, error.strerror)
        return []


def weight_files(folder: Path) -> list[Path]:
    """The files from which an engine reads tensors.

    Raises :class:`FleetError` for a folder that lacks one or cannot be read.
    """
    try:
        names = _file_names(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return [folder / name for name in _weights(folder, names)]


def is_gone(source: str) -> bool:
    """Whether *source* is a folder, and is not there."""
    folder = _Source.parse(source).folder
    return folder is not None and not folder.is_dir()


FileStamps = frozenset[tuple[str, int, int]]
"""Name, size in bytes, and time of change in nanoseconds of every file in a folder."""


def file_stamps(source: str) -> FileStamps:
    """Looks at a model's files, to see later that some have changed. Returns nothing for a model of
    the Hub, whose files nobody changes by hand."""
    folder = _Source.parse(source).folder
    return frozenset() if folder is None else folder_stamps(folder)


def folder_stamps(folder: Path) -> FileStamps:
    """Looks at the files in a folder; returns nothing for one that cannot be looked at."""
    try:
        found = ((name, (folder / name).stat()) for name in _file_names(folder))
        return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
    except OSError:
        return frozenset()


def revision_digest(folder: Path) -> str:
    """Identifies the content of a model folder: equal on nodes whose files are equal.

    Covers the small files that shape answers and, of the weights, their names, sizes, headers and a
    few samples, because fine-tunings of one model differ only in their numbers. It takes
    milliseconds. Raises :class:`FleetError` for files that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in _sorted_files(folder, _DIGESTED):
            content = read_bounded(path, _MAX_DIGESTED_BYTES)
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
        for name in _weights(folder, _file_names(folder)):
            with (folder / name).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                digest.update(f"{name}\0{size}\0".encode())
                start = stream.read(8)
                # the engine reports a wrong length; here it must not make us read gigabytes
                length = min(int.from_bytes(start, "little"), MAX_HEADER_BYTES)
                digest.update(start + stream.read(length))
                for sample in range(_SAMPLES):
                    stream.seek(8 + length + (size - 8 - length) * sample // _SAMPLES)
                    digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return digest.hexdigest()


# -- sources -----------------------------------------------------------------------------------


class _Source(NamedTuple):
    """A source, split into its parts."""

    id: str
    folder: Path | None
    """None = the source is on the Hub."""
    repo: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a source. An existing folder wins over every reading except the demo's name."""
        name, equals, rest = text.partition("=")
        named = equals and name[:1] not in ("/", ".", "~") and not os.path.isdir(_expand(text))
        found = cls._unnamed(rest if named else text)
        try:
            return found._replace(id=check_model_id(name if named else found.id))
        except InvalidName as error:
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{text!r} does not name a model: {error}. Give {DEMO_ID}, a folder, a Hugging "
                "Face id such as Qwen/Qwen3-8B, or NAME=FOLDER.",
            ) from None

    @classmethod
    def _unnamed(cls, text: str) -> Self:
        if text in (DEMO_ID, "demo"):
            return cls(DEMO_ID, Path(str(importlib.resources.files("neuron") / "demo_model")))
        folder = _expand(text)
        hub = _HUB_ID.fullmatch(text)
        if hub and not os.path.isdir(folder):
            return cls(hub[1], None, hub[1], hub[2])
        return cls(folder.name if text else "", folder)


def _expand(text: str) -> Path:
    """The absolute path, with ``~`` expanded."""
    return Path(os.path.abspath(os.path.expanduser(text)))


# -- folders -----------------------------------------------------------------------------------


def _check(folder: Path) -> None:
    """Raises :class:`FleetError` for a folder that no engine could load."""
    try:
        names = _file_names(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    if "config.json" not in names:
        raise _incomplete(folder, "config.json", names)
    _weights(folder, names)
    if "tokenizer.json" not in names:
        raise _incomplete(folder, "tokenizer.json", [n for n in names if "token" in n])


def _file_names(folder: Path) -> list[str]:
    """Sorted names of the files; broken links, as in a half-deleted cache, do not count."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file())


def _sorted_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _weights(folder: Path, names: list[str]) -> list[str]:
    """Names of the model's safetensors files. Raises :class:`FleetError` if one is missing."""
    found = [name for name in names if name.endswith(".safetensors")]
    if INDEX in names:
        wanted = _indexed(folder / INDEX)
        missing = [name for name in wanted if name not in found]
        if missing:
            raise _incomplete(folder, missing[0], found, f"{INDEX} names {len(wanted)} files")
        return wanted
    if SINGLE in names:
        return [SINGLE]
    if not found:
        others = [name for name in names if name.endswith(_OTHER_WEIGHTS)]
        raise _incomplete(folder, "*.safetensors", others, "the only supported weight format")
    shard = _SHARD.fullmatch(found[0])
    if shard and int(shard[1]) > len(found):
        raise _incomplete(folder, INDEX, found)
    return found


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _indexed(path: Path) -> list[str]:
    try:
        index = msgspec.json.decode(read_bounded(path, MAX_INDEX_BYTES), type=_Index)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FleetError(
            ErrorCode.MODEL_NOT_FOUND,
            f"{path} cannot be used: it is not a valid index ({error}). Download the model again.",
        ) from error
    return sorted(set(index.weight_map.values()))


def _incomplete(folder: Path, missing: str, instead: list[str], why: str = "") -> FleetError:
    shown = ", ".join(instead[:3]) + (f" and {len(instead) - 3} more" if len(instead) > 3 else "")
    reason = f" ({why})" if why else ""
    return FleetError(
        ErrorCode.MODEL_NOT_FOUND,
        f"{folder} cannot be served: it has no {missing}{reason}, only "
        f"{shown or 'unrelated files'}. "
        "Complete the folder, or choose a model that is published as safetensors with a "
        "tokenizer.json.",
    )


def _unreadable(path: Path, error: OSError) -> FleetError:
    match error:
        case FileNotFoundError():
            advice = "Check the spelling, or download the model to this folder"
        case NotADirectoryError():
            advice = "Name the folder that holds config.json, the weights and tokenizer.json"
        case UnsuitableFile() | OSError(errno=errno.ELOOP):
            advice = "Replace that file, or download the model again"
        case _:
            advice = "Give the user that runs the neuron read permission"
    reason = error.strerror or str(error)
    return FleetError(
        ErrorCode.MODEL_NOT_FOUND,
        f"{error.filename or path} cannot be read: {reason}. {advice}.",
    )
