"""The prompters of a node's models, each read once and kept while it may be needed again.

Shared by residents and the render endpoint. A large vocabulary takes half a second and hundreds of
megabytes to read, so what is the same file is read once, also for other folders, and what was used
last is kept for the next load. One thread reads all of them: the C library keeps what a thread has
freed for that thread, so that several would each keep as much as the largest file took.
"""

import asyncio
import ctypes
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from neuron.files.sources import FileStamps, folder_stamps
from neuron.service.jobs.prompt import Prompter
from neuron.text.tokenizer import ParsedFiles

KEPT = 8
KEPT_BYTES = 32 << 20
"""Most bytes of tokenizer files that are kept for models that nobody uses; in memory they take ten
times as much. The latest one is always kept."""


class _Key(NamedTuple):
    folder: Path
    files: FileStamps
    call_style: str


class Prompters:
    """Reads prompters, and keeps the latest."""

    def __init__(self) -> None:
        self._files = ParsedFiles()
        self._kept: OrderedDict[_Key, Prompter] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "prompters")

    async def get(self, folder: Path, call_style: str) -> Prompter:
        """Returns the prompter of the model in *folder*; see ``Prompter.load``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._get, folder, call_style)

    def _get(self, folder: Path, call_style: str) -> Prompter:
        key = _Key(folder, folder_stamps(folder), call_style)
        prompter = self._kept.pop(key, None)
        is_new = prompter is None
        if prompter is None:
            prompter = Prompter.load(folder, call_style, self._files)
        self._kept[key] = prompter
        while len(self._kept) > 1 and (len(self._kept) > KEPT or self._kept_bytes() > KEPT_BYTES):
            self._kept.popitem(last=False)
        if is_new:
            give_back_memory()
        return prompter

    def _kept_bytes(self) -> int:
        """Bytes of the files behind what is kept, each counted once."""
        return sum(
            {p.tokenizer.file_id: p.tokenizer.file_bytes for p in self._kept.values()}.values()
        )


def give_back_memory() -> None:
    """Returns to the system what the C library keeps of freed memory; takes milliseconds."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc
        return
    trim(0)
