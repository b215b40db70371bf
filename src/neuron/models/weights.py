"""Fills a model's parameters from a checkpoint, each tensor directly in its final place.

Owns the pairing of tensors with their places, and the pipeline: while some units of a model are
read, others are converted. There is never a second copy of the model in memory: a tensor whose
dtype stays is read into the parameter itself, any other passes through a small buffer, piece by
piece, and only so many units are under way as :data:`STAGED_BYTES` allows. Must not know
architectures: a model hands over its *units* with their *slots*, checkpoint name → destination (a
slice of a fused parameter, say).
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from neuron.layers.weight_target import LoadUnit, WeightTarget
from neuron.models.checkpoint import TensorEntry
from neuron.models.errors import LoadCode, LoadError
from neuron.models.matching import match_tensors

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READERS = 4
"""Fewest threads that read; from a cold disk they are about three times as fast as a single one."""
MOST_READERS = 16
"""Most of them; as they also convert, there is one for each of torch's threads up to here."""
PIECE_BYTES = 8 << 20
"""Bytes that one reader reads at once, and the size of its buffer for converted numbers."""
STAGED_BYTES = 64 << 20
"""Bytes of all units together that are read and not finished yet, unless one alone is larger."""
LARGE_BYTES = 32 << 20
"""Units of this size are converted by all threads of torch, one at a time; smaller ones by one
thread each, beside each other."""
OnBytes = Callable[[int], None]


def match_slots(
    entries: Iterable[TensorEntry],
    slots: Mapping[str, WeightTarget],
    ignored: Callable[[str], bool],
) -> list[tuple[TensorEntry, WeightTarget]]:
    """Pairs every slot with its tensor in the checkpoint, in file order; raises as
    :func:`~neuron.models.matching.match_tensors`."""
    shapes = {name: slot.shape for name, slot in slots.items()}
    found = match_tensors(entries, shapes, ignored)
    pairs = [(found[name], slot) for name, slot in slots.items()]
    return sorted(pairs, key=lambda pair: (pair[0].file, pair[0].begin))


@dataclass(frozen=True, slots=True)
class _ByteRange:
    """A range of a file's bytes, and the numbers that it fills."""

    entry: TensorEntry
    offset: int
    target: torch.Tensor
    """A contiguous slice of a slot: of one dimension, or some rows."""
    columns: slice | None = None
    """The columns to keep, where whole rows are read."""

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept."""
        return self.target.numel() * DTYPES[self.entry.dtype].itemsize


def wanted_bytes(entry: TensorEntry, slot: WeightTarget) -> int:
    """Bytes that :func:`load_units` will report for a pair."""
    return slot.target.numel() * DTYPES[entry.dtype].itemsize


def load_units(
    units: Iterable[LoadUnit],
    entries: Mapping[str, TensorEntry],
    on_bytes: OnBytes = lambda _: None,
) -> None:
    """Places, reads and finishes *units* from the tensors of the checkpoint, *entries* by
    ``canonical`` name.

    Converts dtypes. For a range of columns it reads whole rows, a few at a time, because they are
    contiguous in the file. *on_bytes* is called with the size of each piece that has been read.
    Raises :class:`LoadError`: CORRUPT when a file ends early, NOT_FOUND when it cannot be read.
    """
    threads = torch.get_num_threads()
    readers = max(READERS, min(threads, MOST_READERS))
    pool = ThreadPoolExecutor(
        readers, "read-weights", initializer=torch.set_num_threads, initargs=(1,)
    )
    loading = _Loading(pool, on_bytes)
    try:
        for unit in units:
            loading.begin(unit, entries)
        loading.settle_until(0)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # the pool's threads changed what new threads get


class _UnitUnderWay:
    """A unit that is being read."""

    def __init__(self, unit: LoadUnit, pieces: int) -> None:
        self.unit = unit
        self.is_large = unit.staged_bytes >= LARGE_BYTES
        self._pieces = pieces
        self._lock = threading.Lock()

    def piece_read(self) -> bool:
        """Counts a piece; whether it was the last one."""
        with self._lock:
            self._pieces -= 1
            return not self._pieces


class _Loading:
    """The units under way. The pool's threads read and convert; all else is done by its owner."""

    def __init__(self, pool: ThreadPoolExecutor, on_bytes: OnBytes) -> None:
        self._pool = pool
        self._on_bytes = on_bytes
        self._read: SimpleQueue[tuple[int, _UnitUnderWay | None] | BaseException] = SimpleQueue()
        self._staged = self._under_way = 0

    def begin(self, unit: LoadUnit, entries: Mapping[str, TensorEntry]) -> None:
        """Begins to read *unit*, once there is room for it."""
        self.settle_until(max(0, STAGED_BYTES - unit.staged_bytes))
        unit.place()
        pairs = [(entries[name], slot) for name, slot in unit.slots().items()]
        pieces = [piece for entry, slot in pairs for piece in _pieces(entry, slot)]
        self._staged += unit.staged_bytes
        self._under_way += 1
        if not pieces:  # a rank's share of it can be empty
            self._finished(unit)
            return
        under_way = _UnitUnderWay(unit, len(pieces))
        for piece in pieces:
            self._pool.submit(self._work, piece, under_way)

    def settle_until(self, staged: int) -> None:
        """Waits until at most *staged* bytes are read and not finished; for 0, for everything."""
        while self._under_way and (self._staged > staged or not staged):
            read = self._read.get()
            if isinstance(read, BaseException):
                raise read
            count, complete = read
            self._on_bytes(count)
            if complete is not None:
                if complete.is_large:
                    complete.unit.finish()
                self._finished(complete.unit)

    def _finished(self, unit: LoadUnit) -> None:
        self._staged -= unit.staged_bytes
        self._under_way -= 1

    def _work(self, piece: "_ByteRange", under_way: _UnitUnderWay) -> None:
        try:
            _read(piece)
            is_last = under_way.piece_read()
            if is_last and not under_way.is_large:
                under_way.unit.finish()
            self._read.put((piece.nbytes, under_way if is_last else None))
        except BaseException as error:
            self._read.put(error)


def _pieces(entry: TensorEntry, slot: WeightTarget) -> Iterator[_ByteRange]:
    assert slot.target.is_contiguous(), entry.name
    target, size = slot.target.detach(), DTYPES[entry.dtype].itemsize
    row = math.prod(slot.shape[1:])  # numbers
    if slot.is_cut_across:
        columns = slice(slot.begin, slot.begin + target.shape[1])
        rows = max(1, PIECE_BYTES // (row * size))
        for start in range(0, len(target), rows):
            offset = entry.begin + start * row * size
            yield _ByteRange(entry, offset, target[start : start + rows], columns)
        return
    flat, begin = target.view(-1), entry.begin + slot.begin * row * size
    for start in range(0, len(flat), PIECE_BYTES // size):
        yield _ByteRange(entry, begin + start * size, flat[start : start + PIECE_BYTES // size])


def _read(piece: _ByteRange) -> None:
    entry, target = piece.entry, piece.target
    dtype, columns = DTYPES[entry.dtype], piece.columns
    direct = target.dtype == dtype and target.device.type == "cpu" and columns is None
    shape = target.shape if columns is None else (len(target), entry.shape[1])
    buffer = target if direct else torch.empty(shape, dtype=dtype)
    try:
        descriptor = os.open(entry.file, os.O_RDONLY)
        try:
            _fill(descriptor, entry, buffer, piece.offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LoadError(
            LoadCode.NOT_FOUND,
            f"{entry.file} cannot be read: {error.strerror}. Check the disk and try again.",
        ) from error
    if not direct:
        target.copy_(buffer if columns is None else buffer[:, columns])


def _fill(descriptor: int, entry: TensorEntry, target: torch.Tensor, offset: int) -> None:
    view = memoryview(target.view(-1).view(torch.uint8).numpy().data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise LoadError(
                LoadCode.CORRUPT,
                f"{entry.file} ends at byte {offset}, inside tensor {entry.name!r}: it was "
                "truncated. Download the model again.",
            )
        view, offset = view[count:], offset + count
