"""The texts of a node's models, each read once and kept while they may be needed again.

Shared by residents and the render endpoint. A large vocabulary takes half a second and hundreds of
megabytes to read, so what was used last is kept for the next load. Models with equal files in
different folders have processes of their own: they are rare, and one never disturbs the other.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from neuron.engine_process.launch import LaunchText, start_text_python
from neuron.files.sources import FileStamps, folder_stamps
from neuron.service.texts.model_texts import ModelTexts

KEPT = 4
KEPT_BYTES = 32 << 20
"""Most bytes of tokenizer files that are kept for models that nobody uses; in memory they take ten
times as much. The latest one is always kept."""


class _Key(NamedTuple):
    folder: Path
    files: FileStamps
    call_style: str


class _Entry:
    """A model's texts, and how many use them."""

    def __init__(self, opening: asyncio.Task[ModelTexts]) -> None:
        self.opening = opening
        self.users = 0

    @property
    def texts(self) -> ModelTexts | None:
        """None until they have been read."""
        done = self.opening.done() and not self.opening.cancelled()
        return self.opening.result() if done and not self.opening.exception() else None


class Shelf:
    """Reads the texts of models, and keeps the latest."""

    def __init__(self, launch: LaunchText = start_text_python) -> None:
        self._launch = launch
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of all processes."""
        found = (entry.texts for entry in self._entries.values())
        return tuple(pid for texts in found if texts for pid in texts.pids)

    @asynccontextmanager
    async def use(self, folder: Path, call_style: str) -> AsyncIterator[ModelTexts]:
        """Lends the texts of the model in *folder*. Raises what ``ModelTexts.open`` does."""
        key = _Key(folder, await asyncio.to_thread(folder_stamps, folder), call_style)
        entry = self._entries.get(key)
        if entry is None:
            opening = ModelTexts.open(self._launch, str(folder), call_style)
            entry = _Entry(asyncio.create_task(opening, name=f"texts of {folder}"))
            self._entries[key] = entry
        self._entries.move_to_end(key)
        entry.users += 1
        try:
            yield await asyncio.shield(entry.opening)
        finally:
            entry.users -= 1
            self._tidy(key, entry)

    def _tidy(self, key: _Key, entry: _Entry) -> None:
        """Drops what could not be read, and what is not needed and has no room."""
        if entry.texts is None and not entry.users:
            if self._entries.get(key) is entry:
                del self._entries[key]
            entry.opening.cancel()
        elif not entry.users and key in self._entries:
            self._entries.move_to_end(key)
        unused = [k for k, e in self._entries.items() if not e.users]
        while len(unused) > 1 and (len(unused) > KEPT or self._bytes(unused) > KEPT_BYTES):
            texts = self._entries.pop(unused.pop(0)).texts
            if texts is not None:
                closing = asyncio.create_task(texts.close(), name="texts")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def _bytes(self, keys: list[_Key]) -> int:
        found = (self._entries[key].texts for key in keys)
        return sum(texts.file_bytes for texts in found if texts)

    async def close(self) -> None:
        """Ends all processes."""
        entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            entry.opening.cancel()
        opened = await asyncio.gather(*(e.opening for e in entries), return_exceptions=True)
        found = [texts for texts in opened if isinstance(texts, ModelTexts)]
        await asyncio.gather(*(texts.close() for texts in found), *self._closing)
