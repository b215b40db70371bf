"""Fills a model's parameters from a checkpoint, each tensor directly in its final place.

Owns the pairing of tensors with their places, and the reading. There is never a second copy of the
model in memory: a tensor whose dtype stays is read into the parameter itself, any other passes
through a small buffer, piece by piece. Must not know architectures: a model hands over its
*slots*, checkpoint name → destination (a slice of a fused parameter, say).
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from neuron.layers.weight_target import WeightTarget
from neuron.models.checkpoint import TensorEntry
from neuron.models.errors import LoadCode, LoadError
from neuron.models.matching import match_tensors

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READERS = 4
"""Parallel reads; from a cold disk they are about three times as fast as a single reader."""
PIECE_BYTES = 8 << 20
"""Bytes that one reader reads at once, and the size of its buffer for converted numbers."""
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
    """Bytes that :func:`load_weights` will report for a pair."""
    return slot.target.numel() * DTYPES[entry.dtype].itemsize


def load_weights(
    pairs: Iterable[tuple[TensorEntry, WeightTarget]], on_bytes: OnBytes = lambda _: None
) -> None:
    """Reads every paired tensor, or the range of it that is needed, into its slot.

    Converts dtypes. For a range of columns it reads whole rows, a few at a time, because they are
    contiguous in the file. *on_bytes* is called with the size of each chunk that has been read.
    Raises :class:`LoadError`: CORRUPT when a file ends early, NOT_FOUND when it cannot be read.
    """
    pieces = [piece for entry, slot in pairs for piece in _pieces(entry, slot)]
    pieces.sort(key=lambda piece: (piece.entry.file, piece.offset))
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-weights") as pool:
        jobs = {pool.submit(_read, piece): piece.nbytes for piece in pieces}
        try:
            for job in as_completed(jobs):
                job.result()
                on_bytes(jobs[job])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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
