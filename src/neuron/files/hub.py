"""Model files from the Hugging Face Hub: from the local cache, else downloaded with progress.

Owns the choice of files, a download's progress, and how its failures are explained to people. Must
not know what makes a model folder complete: the caller's check decides that.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from protocol.errors import ErrorCode, FleetError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

LEFT_FREE_BYTES = 1_000_000_000
"""Free space to leave on the disk that models are downloaded to."""
REPORT_SECONDS = 0.3
"""Shortest time between two progress reports of a download."""

OnProgress = Callable[[int, int], None]
"""Called with bytes done and total bytes, as far as the downloader knows the total."""
Download = Callable[..., Any]
"""``huggingface_hub.snapshot_download``, or its stand-in in tests."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*")
_UNWANTED = (
    # another format's copy of the weights, and variants in subfolders (onnx/, original/)
    "consolidated*.safetensors",
    *(f"*/*.{suffix}" for suffix in ("safetensors", "json", "txt", "model")),
)


def fetch(
    repo: str,
    revision: str | None,
    transfer: "Transfer",
    check: Callable[[Path], None],
    download: Download | None = None,
) -> Path:
    """Returns the cached snapshot if *check* accepts it, else downloads one. Runs in a thread.

    Raises :class:`FleetError`: MODEL_NOT_FOUND for what does not exist, MODEL_UNAVAILABLE for what
    cannot be fetched now, and whatever *check* raises.
    """
    # importing it takes half a second, which nodes with only local folders need not spend
    from huggingface_hub import snapshot_download

    snapshot = functools.partial(
        download or snapshot_download,
        repo,
        revision=revision,
        allow_patterns=list(_WANTED),
        ignore_patterns=list(_UNWANTED),
        tqdm_class=transfer.bar_class(),
    )
    try:
        try:
            folder = Path(snapshot(local_files_only=True))
            check(folder)
        except (FileNotFoundError, FleetError):  # not cached, or not completely
            files = []
            with contextlib.suppress(Exception):  # the download itself reports what is wrong
                files = snapshot(local_files_only=False, dry_run=True)
            _check_room(repo, files)
            folder = Path(snapshot(local_files_only=False))
            _check_sums(repo, folder)
            check(folder)
        return folder
    except FleetError:
        raise
    except Exception as error:
        raise _explain(error, repo, revision, transfer) from error


def _check_room(repo: str, files: Any) -> None:
    """Raises :class:`FleetError` when the disk has too little room for the download."""
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    if not missing:
        return
    place = Path(next(file.local_path for file in files if file.will_download))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if missing + LEFT_FREE_BYTES > free:
        raise FleetError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"{repo} cannot be downloaded: it takes {missing / 1e9:.1f} GB, and {place} has "
            f"{free / 1e9:.1f} GB free, of which {LEFT_FREE_BYTES / 1e9:.0f} GB must stay free. "
            "Make room, or set HF_HOME to a folder on a larger disk.",
        )


def _check_sums(repo: str, folder: Path) -> None:
    """Checks the large files, which the cache names by their SHA-256.

    Raises :class:`FleetError` for a file that does not match, and removes it first so that the next
    attempt downloads it again.
    """
    for path in sorted(folder.rglob("*")):
        content = path.resolve()
        if not _SHA256.fullmatch(content.name) or not path.is_file():
            continue
        with content.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != content.name:
            path.unlink()
            content.unlink()
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{repo} cannot be used: {path.name} arrived damaged (SHA-256 {digest[:12]}… "
                "instead of "
                f"{content.name[:12]}…). The file was removed; the next attempt downloads it "
                "again.",
            )


def cached(repo: str, revision: str | None, check: Callable[[Path], None]) -> Path | None:
    """The cached snapshot if *check* accepts it. Never asks the Hub. Runs in a thread."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        check(folder)
    except (FileNotFoundError, FleetError):
        return None
    return folder


def cached_models() -> list[str]:
    """Ids of the models in the local cache, complete or incomplete. Runs in a thread."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        names = sorted(path.name for path in Path(HF_HUB_CACHE).glob("models--*--*"))
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names]


class _Stopped(Exception):
    """Raised in the downloader's threads once nobody waits for the download."""


class Transfer:
    """Links a download's threads to the event loop: progress goes one way, the stop the other."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_progress = on_progress
        self._next_report = 0.0
        self.wanted = True
        self.bytes_bar: _Bar | None = None
        """The newest bar that counts bytes; an older one counts compressed bytes on the network."""

    def bar_class(self) -> type["_Bar"]:
        """Returns a new class each time: the downloader takes a class, and each transfer needs
        one."""
        return type("Bar", (_Bar,), {"transfer": self})

    def advanced(self, bar: "_Bar") -> None:
        """Takes a progress report in any thread. Raises to end the download: there is no other
        way."""
        if not self.wanted:
            raise _Stopped
        now = time.monotonic()
        if bar is self.bytes_bar and now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            total = max(bar.n, bar.total or 0)
            self._loop.call_soon_threadsafe(self._report, bar.n, total)

    def how_far(self) -> str:
        """How far the download got before it failed, for people."""
        bar = self.bytes_bar
        return f" after {bar.n / 1e9:.1f} of {(bar.total or 0) / 1e9:.1f} GB" if bar else ""

    def _report(self, done: int, total: int) -> None:
        if self.wanted:
            self._on_progress(done, total)


class _Bar:
    """The part of a tqdm progress bar that huggingface_hub uses; it draws nothing."""

    transfer: ClassVar[Transfer]

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
        """Advances the bar; several threads may call it."""
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


def _explain(error: Exception, repo: str, revision: str | None, transfer: Transfer) -> FleetError:
    """Turns a failed download into an error that says what happened and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    code, advice = ErrorCode.MODEL_UNAVAILABLE, "It will be tried again"
    # the Hub's answer is the cause of "not in the cache"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    text = f"{type(cause).__name__}: {cause}".partition("\n")[0].rstrip(".")
    match cause:
        case errors.RevisionNotFoundError():
            code, why = ErrorCode.MODEL_NOT_FOUND, f"the model has no revision {revision!r}"
            advice = f"Choose a branch or tag from {page}/refs, or leave out the @"
        case errors.HfHubHTTPError() if _refused(cause):
            why = f"the Hub denied access, with this node's token or without one ({text})"
            advice = f"Accept the licence at {page}, then run `hf auth login` here or set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            code, why = (
                ErrorCode.MODEL_NOT_FOUND,
                "no such model on the Hub, and no such folder here",
            )
            advice = "Check the spelling; for a private model, run `hf auth login` or set HF_TOKEN"
        case errors.OfflineModeIsEnabled():
            why = "it is not in the local cache, and HF_HUB_OFFLINE forbids downloads"
            advice = "Unset HF_HUB_OFFLINE, or copy the model to this host and name its folder"
        case _ if _is_full(error):
            why = f"the disk is full{transfer.how_far()}"
            advice = "Make room, or set HF_HOME to a folder on a larger disk"
        case _ if isinstance(error, errors.LocalEntryNotFoundError):
            why = f"it is not in the local cache, and the Hub cannot be reached ({text})"
            advice = "It will be tried again; or copy the model to this host and name its folder"
        case _:
            why = f"the download failed ({text})"
    return FleetError(code, f"{repo} cannot be downloaded: {why}. {advice}.")


def _refused(error: "HfHubHTTPError") -> bool:
    """Whether the model is gated or the token wrong; the Hub answers 401 for unknown models too."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        return isinstance(error, errors.GatedRepoError)
    return error.response.status_code in (401, 403)


def _is_full(error: Exception) -> bool:
    """Whether the disk is full; the Hub's own transfer library only says so in its text."""
    code = error.errno if isinstance(error, OSError) else None
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
