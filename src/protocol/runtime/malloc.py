"""Gives memory back that the C library keeps for itself."""

import contextlib
import ctypes

MUCH_BYTES = 16 << 20
"""Less free memory than this is not worth the time of giving it back."""


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of mallinfo(3)."""

    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]


_FREE_BYTES = "field_8"
"""``fordblks``: what has been freed, but is kept."""


def give_back_memory() -> None:
    """Returns to the system what the C library keeps of freed memory. No thread can allocate
    meanwhile: it takes about a millisecond for eight megabytes, and longer for small pieces."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def give_back_much_memory() -> None:
    """The same, unless there is too little for that."""
    if _free_bytes() >= MUCH_BYTES:
        give_back_memory()


def _free_bytes() -> int:
    """How much freed memory the C library keeps; ``MUCH_BYTES`` where that is not known."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc, or one before 2.33
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _MallInfo
        return int(getattr(mallinfo2(), _FREE_BYTES))
    return MUCH_BYTES
