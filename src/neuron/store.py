"""Where a model's files are: a source as the configuration names it → a folder with all of them.

Owns the spelling of sources, what a complete model folder has, downloads from the Hugging Face Hub
and the digest that names a folder's content. Must not know tensors, devices or a model's life.

A source is ``cortex-demo`` (or ``demo``), a folder, ``org/name[@revision]`` of the Hub, or
``NAME=`` and one of these.
"""

import asyncio
import errno
import hashlib
import importlib.resources
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import msgspec

from neuron.models.checkpoint import INDEX, MAX_HEADER_BYTES, SINGLE
from protocol.errors import ErrorCode, FleetError
from protocol.names import InvalidName, check_model_id

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

DEMO_ID = "cortex-demo"
REPORT_SECONDS = 0.3
"""Between two reports of a download's progress."""

OnProgress = Callable[[int, int], None]
"""Bytes done and bytes in all, as far as the downloader knows by now."""
Download = Callable[..., str]
"""``huggingface_hub.snapshot_download`` or what stands in for it."""

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(.+))?", re.ASCII)
_SHARD = re.compile(r".*-\d+-of-(\d+)\.safetensors")
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*")
_UNWANTED = (
    # another format's copy of the weights, and those of variants in folders (onnx/, original/)
    "consolidated*.safetensors",
    *(f"*/*.{suffix}" for suffix in ("safetensors", "json", "txt", "model")),
)
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
    source: str, on_progress: OnProgress, *, download: Download | None = None
) -> Path:
    """The folder with the files of *source*, complete, fetched from the Hub if need be.

    *on_progress* is called in the event loop's thread, and not after this has returned or was
    cancelled. Raises :class:`FleetError`: MODEL_NOT_FOUND for what is missing or no model,
    MODEL_UNAVAILABLE for what cannot be fetched now.
    """
    where = _Source.parse(source)
    if where.folder is not None:
        await asyncio.to_thread(_check, where.folder)
        return where.folder
    transfer = _Transfer(on_progress)
    try:
        return await asyncio.to_thread(_fetch, where, transfer, download)
    finally:
        transfer.wanted = False


def revision_digest(folder: Path) -> str:
    """Names the content of a model folder: equal on nodes whose files are equal.

    Covers the small files that shape answers, and of the weights their names, sizes and headers,
    so it takes milliseconds. Raises :class:`FleetError` for files that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in _sorted_files(folder, _DIGESTED):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
        for name in _weights(folder, _file_names(folder)):
            with (folder / name).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                digest.update(f"{name}\0{size}\0".encode())
                start = stream.read(8)
                # a wrong length is the engine's to report; here it must not cost gigabytes
                length = min(int.from_bytes(start, "little"), MAX_HEADER_BYTES)
                digest.update(start + stream.read(length))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return digest.hexdigest()


# -- sources -----------------------------------------------------------------------------------


class _Source(NamedTuple):
    """A source, taken apart."""

    id: str
    folder: Path | None
    """None = on the Hub."""
    repo: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """An existing folder wins over every reading but the demo's name."""
        name, equals, rest = text.partition("=")
        named = equals and name[:1] not in ("/", ".", "~") and not os.path.isdir(_expand(text))
        found = cls._unnamed(rest if named else text)
        try:
            return found._replace(id=check_model_id(name if named else found.id))
        except InvalidName as error:
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{text!r} names no model: {error}. Give {DEMO_ID}, a folder, a Hugging Face id "
                "such as Qwen/Qwen3-8B, or NAME=FOLDER.",
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
    """Absolute, with ``~`` for the home."""
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
    """Sorted; links into nowhere, as a half-deleted cache has them, do not count."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file())


def _sorted_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _weights(folder: Path, names: list[str]) -> list[str]:
    """The safetensors files of the model; raises :class:`FleetError` if one is missing."""
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
        raise _incomplete(folder, "*.safetensors", others, "only that format is loaded")
    shard = _SHARD.fullmatch(found[0])
    if shard and int(shard[1]) > len(found):
        raise _incomplete(folder, INDEX, found)
    return found


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _indexed(path: Path) -> list[str]:
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FleetError(
            ErrorCode.MODEL_NOT_FOUND,
            f"{path} cannot be used: it is not a valid index ({error}). Fetch the model again.",
        ) from error
    return sorted(set(index.weight_map.values()))


def _incomplete(folder: Path, missing: str, instead: list[str], why: str = "") -> FleetError:
    shown = ", ".join(instead[:3]) + (f" and {len(instead) - 3} more" if len(instead) > 3 else "")
    reason = f" ({why})" if why else ""
    return FleetError(
        ErrorCode.MODEL_NOT_FOUND,
        f"{folder} cannot be served: it has no {missing}{reason}, but {shown or 'nothing like it'}."
        " Complete the folder, or choose a model that is published as safetensors with a "
        "tokenizer.json.",
    )


def _unreadable(path: Path, error: OSError) -> FleetError:
    match error:
        case FileNotFoundError():
            advice = "Check its spelling, or fetch the model there"
        case NotADirectoryError():
            advice = "Name the folder that holds config.json, the weights and tokenizer.json"
        case _:
            advice = "Let the user that runs the neuron read it"
    reason = error.strerror or str(error)
    return FleetError(
        ErrorCode.MODEL_NOT_FOUND,
        f"{error.filename or path} cannot be read: {reason}. {advice}.",
    )


# -- the Hub -----------------------------------------------------------------------------------


def _fetch(where: _Source, transfer: "_Transfer", download: Download | None) -> Path:
    """The cached snapshot if it is complete, else a downloaded one. Runs in a thread."""
    # takes half a second, which a node with local folders does not have to wait for
    from huggingface_hub import snapshot_download

    def snapshot(*, local_files_only: bool) -> Path:
        folder = (download or snapshot_download)(
            where.repo,
            revision=where.revision,
            local_files_only=local_files_only,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
            tqdm_class=transfer.bar_class(),
        )
        _check(Path(folder))
        return Path(folder)

    try:
        try:
            return snapshot(local_files_only=True)
        except (FileNotFoundError, FleetError):  # not in the cache, or not all of it
            return snapshot(local_files_only=False)
    except FleetError:
        raise
    except Exception as error:
        raise _explain(error, where, transfer) from error


class _Stopped(Exception):
    """Raised in the downloader's threads when nobody waits for them any more."""


class _Transfer:
    """Between the threads of a download and the event loop: progress one way, the end the other."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_progress = on_progress
        self._next_report = 0.0
        self.wanted = True
        self.bytes_bar: _Bar | None = None
        """The newest that counts bytes; an older one counts those of the network, compressed."""

    def bar_class(self) -> type["_Bar"]:
        """The downloader takes a class, so each download has its own."""
        return type("Bar", (_Bar,), {"transfer": self})

    def advanced(self, bar: "_Bar") -> None:
        """Called in any thread. Raises to end the download, which has no other way out."""
        if not self.wanted:
            raise _Stopped
        now = time.monotonic()
        if bar is self.bytes_bar and now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            total = max(bar.n, bar.total or 0)
            self._loop.call_soon_threadsafe(self._report, bar.n, total)

    def how_far(self) -> str:
        """For people, after a failure."""
        bar = self.bytes_bar
        return f" after {bar.n / 1e9:.1f} of {(bar.total or 0) / 1e9:.1f} GB" if bar else ""

    def _report(self, done: int, total: int) -> None:
        if self.wanted:
            self._on_progress(done, total)


class _Bar:
    """As much of a tqdm progress bar as huggingface_hub touches; it draws nothing."""

    transfer: ClassVar[_Transfer]

    def __init__(
        self, *_: object, total: int | None = None, initial: int = 0, unit: str = "", **__: object
    ) -> None:
        self.n = initial
        self.total = total
        self.format_dict: dict[str, object] = {}
        self._lock = threading.Lock()
        if unit == "B":
            self.transfer.bytes_bar = self

    def update(self, n: float | None = 1) -> None:
        """Several threads feed one bar."""
        with self._lock:
            self.n += int(n or 0)
        self.transfer.advanced(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _draw(self, *_: object, **__: object) -> None:
        pass

    close = refresh = set_description = set_description_str = set_postfix_str = _draw


def _explain(error: Exception, where: _Source, transfer: _Transfer) -> FleetError:
    """What a failed download means, and what to do."""
    from huggingface_hub import errors

    repo, page = where.repo, f"https://huggingface.co/{where.repo}"
    code, advice = ErrorCode.MODEL_UNAVAILABLE, "It is tried again"
    # what the Hub answered hides behind "not in the cache"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    text = f"{type(cause).__name__}: {cause}".partition("\n")[0].rstrip(".")
    match cause:
        case errors.RevisionNotFoundError():
            code, why = ErrorCode.MODEL_NOT_FOUND, f"it has no revision {where.revision!r}"
            advice = f"See the branches and tags at {page}/refs, or leave out the @"
        case errors.HfHubHTTPError() if _refused(cause):
            why = f"the Hub refuses it to this node's token, or without one ({text})"
            advice = f"Accept the licence at {page}, then run `hf auth login` here or set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            code, why = ErrorCode.MODEL_NOT_FOUND, "the Hub has no such model, nor is it a folder"
            advice = "Check its spelling; for a private one, run `hf auth login` or set HF_TOKEN"
        case errors.OfflineModeIsEnabled():
            why = "it is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it"
            advice = "Unset that, or copy the model here and name its folder"
        case _ if _is_full(error):
            why = f"the disk is full{transfer.how_far()}"
            advice = "Make room, or set HF_HOME to a folder on a larger disk"
        case _ if isinstance(error, errors.LocalEntryNotFoundError):
            why = f"it is not in the local cache, and the Hub cannot be reached ({text})"
            advice = "It is tried again; or copy the model here and name its folder"
        case _:
            why = f"the download broke off ({text})"
    return FleetError(code, f"{repo} cannot be fetched: {why}. {advice}.")


def _refused(error: "HfHubHTTPError") -> bool:
    """Gated, or a token that is wrong; the Hub also answers 401 for what does not exist."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        return isinstance(error, errors.GatedRepoError)
    return error.response.status_code in (401, 403)


def _is_full(error: Exception) -> bool:
    """The Hub's own transfer library says it in words only."""
    code = error.errno if isinstance(error, OSError) else None
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
