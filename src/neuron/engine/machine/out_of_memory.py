"""Whether an error means that memory ran out: devices, the allocator and Python say it each in
their own way. Must not know what was being done."""

import torch

_PHRASES = (
    "can't allocate memory",  # torch's allocator for CPUs, a plain RuntimeError
    "cublas_status_alloc_failed",
    "cuda error: out of memory",
)


def shortage(error: Exception) -> str | None:
    """In one line what could not be had; None for an error of another kind."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return line or "no memory for an object of Python"
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
