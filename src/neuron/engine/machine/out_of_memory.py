"""Recognizes errors that mean memory ran out.

Devices, the allocator and Python each say it in their own way. Must not know what was being done.
"""

import torch

_PHRASES = (
    "can't allocate memory",  # torch's allocator for CPUs, a plain RuntimeError
    "cublas_status_alloc_failed",
    "cuda error: out of memory",
)


def shortage(error: Exception) -> str | None:
    """One line that says what could not be allocated; None for any other error."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return line or "no memory for a Python object"
    if isinstance(error, RuntimeError):
        return next(
            (
                line
                for line in str(error).splitlines()
                if any(phrase in line.lower() for phrase in _PHRASES)
            ),
            None,
        )
    return None
