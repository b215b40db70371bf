"""Gives memory back that the C library keeps for itself."""

import ctypes


def give_back_memory() -> None:
    """Returns to the system what the C library keeps of freed memory; takes milliseconds."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc
        return
    trim(0)
