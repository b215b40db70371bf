"""Limits the memory that an engine's process keeps after use, as far as that costs no time.

Owns two thresholds of glibc's allocator (mallopt(3)) and the number of compiled kernels; no torch.
By default glibc takes ever larger chunks from its heap; a load, which packs one matrix after the
other and drops the originals, then leaves holes of 100 MiB and more that are never filled again.
Does nothing where there is no glibc.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator

KERNELS_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Capacities of oneDNN's cache and of torch's cache around it; read at first use."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The values of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h."""
_LOADING_BYTES = 1 << 20
"""While a model loads, larger allocations get their own mapping, which is unmapped when freed."""
_SERVING_BYTES = 32 << 20
"""Steps take their memory from the heap again, because pages of a new mapping cost time. glibc
itself goes up to this size, and like glibc, twice as much may stay free at the heap's end."""


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """Returns all memory that is allocated and freed inside the ``with`` block to the system."""
    mallopt, trim = _function("mallopt"), _function("malloc_trim")
    mallopt(_MMAP_THRESHOLD, _LOADING_BYTES)
    mallopt(_TRIM_THRESHOLD, _LOADING_BYTES)
    try:
        yield
    finally:
        trim(0)
        mallopt(_MMAP_THRESHOLD, _SERVING_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _SERVING_BYTES)


def _function(name: str) -> Callable[..., object]:
    """A function of the C library, or one that does nothing."""
    try:
        found: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return lambda *_: None
    return found
