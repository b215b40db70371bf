"""Filling a model's parameters from a checkpoint: each tensor straight into its final place.

Owns the match of names, shapes and dtypes, and the reading. There is never a second copy of the
model in memory: a tensor whose dtype stays is read into the parameter itself, any other passes
through a small buffer, piece by piece. Must not know architectures: a model hands over its
*slots*, checkpoint name → destination (a slice of a fused parameter, say).
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from neuron.models.checkpoint import TensorEntry
from neuron.models.errors import LoadCode, LoadError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READERS = 4
"""Parallel reads; a cold disk gives about three times the bytes of a single reader."""
PIECE_BYTES = 4 << 20
"""Size of a reader's buffer for tensors that are converted or copied to a device."""

OnBytes = Callable[[int], None]


def canonical(name: str) -> str:
    """A tensor's name without the ``model.`` that some exporters leave out."""
    return name.removeprefix("model.")


def match_slots(
    entries: Iterable[TensorEntry],
    slots: Mapping[str, torch.Tensor],
    ignored: Callable[[str], bool],
) -> list[tuple[TensorEntry, torch.Tensor]]:
    """Pairs every slot with its tensor in the checkpoint, in file order.

    Names are compared in :func:`canonical` form; *ignored* tells which tensors of a checkpoint
    may be left alone. Raises :class:`LoadError` CORRUPT for missing or unexpected tensors and for
    wrong shapes.
    """
    found = {canonical(entry.name): entry for entry in entries}
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


def load_weights(
    pairs: list[tuple[TensorEntry, torch.Tensor]], on_bytes: OnBytes = lambda _: None
) -> None:
    """Reads every paired tensor into its slot (contiguous), converting dtypes.

    *on_bytes* is told how many bytes have been read so far. Raises :class:`LoadError`: CORRUPT
    when a file ends early, NOT_FOUND when it cannot be read.
    """
    done = 0
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-weights") as pool:
        jobs = {pool.submit(_read, entry, slot): entry.nbytes for entry, slot in pairs}
        try:
            for job in as_completed(jobs):
                job.result()
                done += jobs[job]
                on_bytes(done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _read(entry: TensorEntry, slot: torch.Tensor) -> None:
    assert slot.is_contiguous(), entry.name
    flat = slot.detach().view(-1)
    try:
        descriptor = os.open(entry.file, os.O_RDONLY)
        try:
            if flat.dtype == DTYPES[entry.dtype] and flat.device.type == "cpu":
                _fill(descriptor, entry, flat, entry.begin)
            else:
                _convert(descriptor, entry, flat)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LoadError(
            LoadCode.NOT_FOUND,
            f"{entry.file} cannot be read: {error.strerror}. Check the disk and try again.",
        ) from error


def _convert(descriptor: int, entry: TensorEntry, flat: torch.Tensor) -> None:
    """Reads piece by piece through one buffer, then converts into place (or onto the device)."""
    dtype = DTYPES[entry.dtype]
    per_piece = PIECE_BYTES // dtype.itemsize
    buffer = torch.empty(min(per_piece, entry.elements), dtype=dtype)
    for start in range(0, entry.elements, per_piece):
        piece = buffer[: min(per_piece, entry.elements - start)]
        _fill(descriptor, entry, piece, entry.begin + start * dtype.itemsize)
        flat[start : start + len(piece)].copy_(piece)


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
