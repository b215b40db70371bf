"""What the kernel holds of files and of this process; for tests and measurements."""

import ctypes
import mmap
import os
from pathlib import Path


def locked_bytes() -> int:
    """What this process has locked in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmLck")


def cached_share(path: Path) -> float:
    """The part of *path* that is in the page cache, from 0 to 1, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        size = ctypes.c_size_t(len(mapped))
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), size, pages)
        del anchor  # it would keep the mapping open
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(byte & 1 for byte in bytes(pages)) / len(pages)


def forget(path: Path) -> None:
    """Asks the kernel to drop *path* from the page cache; locked pages stay."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
