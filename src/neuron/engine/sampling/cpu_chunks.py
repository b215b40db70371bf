"""Pieces of a logits matrix that are worked on at once.

On a CPU a pass of several operations over a whole row goes through memory once per operation;
over a piece it stays in the cache, and an operation this small is never split among threads, whose
waking can cost more than the work. A GPU wants everything at once. Owns only this cut: whatever
is computed over pieces must not depend on where they end.
"""

from collections.abc import Iterator

import torch

CHUNK = 32_768
"""Columns of a piece on a CPU: 256 KiB of int64, within any second-level cache; and the most
elements that an operation of torch leaves to one thread."""
MANY_THREADS = 8
"""With so many compute threads a whole row is better: its operations are split among them."""


def chunks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Pairs of a slice of *rows* and a slice of *columns* that cover the matrix, in order."""
    cpu = device.type == "cpu"
    height = 1 if cpu else rows
    width = CHUNK if cpu and torch.get_num_threads() < MANY_THREADS else columns
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, top + height), slice(left, min(left + width, columns))
