"""Filling a model's parameters from a checkpoint: each tensor straight into its final place.

Owns the match of names, shapes and dtypes, and the reading. There is never a second copy of the
model in memory: a tensor whose dtype stays is read into the parameter itself, any other passes
through a small buffer, piece by piece. Must not know architectures: a model hands over its
*slots*, checkpoint name → destination (a slice of a fused parameter, say).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from neuron.models.checkpoint import TensorEntry, canonical
from neuron.models.errors import LoadCode, LoadError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READERS = 4
"""Parallel reads; a cold disk gives about three times the bytes of a single reader."""
PIECE_BYTES = 8 << 20
"""What one reader reads at once; also the size of its buffer where numbers are converted."""
OnBytes = Callable[[int], None]


def match_slots(
    entries: Iterable[TensorEntry],
    slots: Mapping[str, torch.Tensor],
    ignored: Callable[[str], bool],
) -> list[tuple[TensorEntry, torch.Tensor]]:
    """Pairs every slot with its tensor in the checkpoint, in file order.

    Names are compared in ``canonical`` form; *ignored* tells which tensors of a checkpoint
    may be left alone. Raises :class:`LoadError` CORRUPT for missing, doubled or unexpected tensors
    and for wrong shapes.
    """
    found = _by_name(entries)
    missing = sorted(slots.keys() - found.keys())
    unexpected = sorted(name for name in found.keys() - slots.keys() if not ignored(name))
    if missing or unexpected:
        faults = [
            f"{word} {len(names)} tensor{'s' * (len(names) > 1)} ({_some(names)})"
            for word, names in (("lacks", missing), ("has unexpected", unexpected))
            if names
        ]
        raise LoadError(
            LoadCode.CORRUPT,
            f"The weights do not fit config.json: the checkpoint {' and '.join(faults)}. "
            "Check that config.json belongs to these weights, or fetch the model again.",
        )
    pairs = [(found[name], slot) for name, slot in slots.items()]
    for entry, slot in pairs:
        if entry.shape != tuple(slot.shape):
            raise LoadError(
                LoadCode.CORRUPT,
                f"The weights do not fit config.json: tensor {entry.name!r} has shape "
                f"{list(entry.shape)}, expected {list(slot.shape)}. Check that config.json "
                "belongs to these weights, or fetch the model again.",
            )
    return sorted(pairs, key=lambda pair: (pair[0].file, pair[0].begin))


def _by_name(entries: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for entry in entries:
        other = found.setdefault(canonical(entry.name), entry)
        if other is not entry:
            raise LoadError(
                LoadCode.CORRUPT,
                f"The checkpoint holds one tensor twice, as {other.name!r} and {entry.name!r}. "
                "Fetch the model again into an empty folder.",
            )
    return found


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range of a file's bytes, and the numbers that it fills."""

    entry: TensorEntry
    offset: int
    target: torch.Tensor
    """A contiguous slice of a slot, in one dimension."""

    @property
    def nbytes(self) -> int:
        return len(self.target) * DTYPES[self.entry.dtype].itemsize


def load_weights(
    pairs: Iterable[tuple[TensorEntry, torch.Tensor]], on_bytes: OnBytes = lambda _: None
) -> None:
    """Reads every paired tensor into its slot (contiguous), converting dtypes.

    *on_bytes* is told of every few bytes that have been read. Raises :class:`LoadError`: CORRUPT
    when a file ends early, NOT_FOUND when it cannot be read.
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


def _pieces(entry: TensorEntry, slot: torch.Tensor) -> Iterator[_Piece]:
    assert slot.is_contiguous(), entry.name
    flat, size = slot.detach().view(-1), DTYPES[entry.dtype].itemsize
    for start in range(0, len(flat), PIECE_BYTES // size):
        target = flat[start : start + PIECE_BYTES // size]
        yield _Piece(entry, entry.begin + start * size, target)


def _read(piece: _Piece) -> None:
    entry, target = piece.entry, piece.target
    direct = target.dtype == DTYPES[entry.dtype] and target.device.type == "cpu"
    buffer = target if direct else torch.empty(len(target), dtype=DTYPES[entry.dtype])
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
        target.copy_(buffer)


def _fill(descriptor: int, entry: TensorEntry, target: torch.Tensor, offset: int) -> None:
    view = memoryview(target.view(torch.uint8).numpy().data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise LoadError(
                LoadCode.CORRUPT,
                f"{entry.file} ends at byte {offset}, inside tensor {entry.name!r}: it was "
                "truncated. Fetch the model again.",
            )
        view, offset = view[count:], offset + count


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
