"""What an engine's process keeps of the memory that it has used: as little as costs no time.

Owns two thresholds of glibc's allocator (mallopt(3)) and the number of compiled kernels; no torch.
Left alone, glibc takes ever larger pieces from its heap, and a load, which lays out one matrix
after the other and drops the original, leaves holes of 100 MiB and more there that nobody fills
again. Does nothing where there is no glibc.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator

KERNELS_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The places of oneDNN's cache, and of the one that torch has around it; read at the first use."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_LOADING_BYTES = 1 << 20
"""While a model is loaded, what is larger has a mapping of its own and goes back when dropped."""
_SERVING_BYTES = 32 << 20
"""What steps use comes from the heap again, because pages of a new mapping cost time; glibc itself
goes up to this size. Twice as much may stay free at the heap's end, as there."""


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """What is allocated and dropped inside leaves nothing behind."""
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
