"""Chunks of a logits matrix that are processed at once.

On a CPU, several operations over a whole row go through memory once per operation; over a chunk,
the data stays in the cache, and torch never splits so small an operation among threads, whose
waking can cost more than the work. A GPU processes everything at once. Owns only the division: what
is computed over chunks must not depend on where they end.
"""

from collections.abc import Iterator

import torch

CHUNK = 32_768
"""Columns of a chunk on a CPU: 256 KiB of int64, which fits into any second-level cache; also the
most elements that a torch operation leaves to one thread."""
MANY_THREADS = 8
"""From this many compute threads on, whole rows are better: their operations are split."""


def chunks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Pairs of a slice of *rows* and a slice of *columns* that cover the matrix, in order."""
    cpu = device.type == "cpu"
    height = 1 if cpu else rows
    width = CHUNK if cpu and torch.get_num_threads() < MANY_THREADS else columns
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, top + height), slice(left, min(left + width, columns))
