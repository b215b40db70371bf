"""Files mapped into memory and locked there chunk by chunk; the only module that calls libc.

Owns the mappings and how the kernel's refusals are explained to people. Nobody ever reads through
these mappings, so a file that is truncated on disk causes an error here and no SIGBUS. Must not
know models or budgets.

Reference: mmap(2), madvise(2), mlock(2).
"""

import ctypes
import errno
import functools
import mmap
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from protocol.runtime.sizes import size_text

PIECE_BYTES = 64 << 20
"""Bytes that one call locks. During the call, other threads that ask the kernel for memory may have
to wait; for cached pages it takes a few milliseconds."""

_PAGE = mmap.PAGESIZE
_MLOCK_ONFAULT = 1
_FAILED = ctypes.c_void_p(-1).value
_NORESERVE = 0x4000


class PagesError(Exception):
    """Raised when pages cannot be mapped or locked; the message is one line for people."""


class ByteRange(NamedTuple):
    """A page-aligned part of a mapped file."""

    path: Path
    address: int
    nbytes: int
    """A multiple of the page size."""


class _Version(NamedTuple):
    """Identifies a file's content: equal while nobody has changed or replaced the file."""

    device: int
    inode: int
    nbytes: int
    changed_ns: int


class LockedPages:
    """The mapped pages of some files. Only one thread at a time may call it."""

    def __init__(self) -> None:
        self.versions: tuple[_Version, ...] = ()
        """Equal for two objects that map the same bytes."""
        self._mappings: list[ByteRange] = []

    @property
    def nbytes(self) -> int:
        """The size of all mapped pages; partial pages count as whole ones."""
        return sum(mapping.nbytes for mapping in self._mappings)

    def map(self, paths: Iterable[Path]) -> None:
        """Maps the files, which does not take memory yet. Raises :class:`PagesError`."""
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    self._map(path, descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                why = f"{path} cannot be read: {error.strerror}"
                raise PagesError(why) from error

    def _map(self, path: Path, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self.versions += (
            _Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns),
        )
        if status.st_size:  # the kernel refuses to map empty files
            nbytes = -(-status.st_size // _PAGE) * _PAGE
            self._mappings.append(
                ByteRange(path, _mmap(nbytes, mmap.MAP_SHARED, descriptor), nbytes)
            )

    def pieces(self) -> Iterator[ByteRange]:
        """The chunks to lock, one per call."""
        for path, address, nbytes in self._mappings:
            for start in range(0, nbytes, PIECE_BYTES):
                yield ByteRange(path, address + start, min(PIECE_BYTES, nbytes - start))

    def lock(self, piece: ByteRange) -> None:
        """Reads what is missing of *piece* from disk and keeps it in memory.

        Raises :class:`PagesError`. After a failure a part may stay locked; :meth:`close` unlocks
        that too.
        """
        # mlock's own page faults read little at a time; this asks for the whole chunk at once.
        _libc().madvise(piece.address, piece.nbytes, mmap.MADV_WILLNEED)
        if _libc().mlock(piece.address, piece.nbytes):
            raise PagesError(_refusal(ctypes.get_errno(), piece))

    def close(self) -> None:
        """Unlocks and unmaps everything; the kernel may then reclaim the pages."""
        for _, address, nbytes in self.pieces():
            _munmap(address, nbytes)
        self._mappings.clear()


def may_lock(nbytes: int) -> bool:
    """Whether this process may lock *nbytes* more.

    Asks the kernel by locking an empty mapping without filling it. That is also right in
    containers, where capabilities may mean nothing.
    """
    nbytes = -(-nbytes // _PAGE) * _PAGE
    try:
        address = _mmap(nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1)
    except OSError:
        return False
    try:
        return not _libc().mlock2(address, nbytes, _MLOCK_ONFAULT)
    finally:
        _munmap(address, nbytes)


def lock_limit() -> str:
    """The limit on locked memory, as text for people."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return "without limit"
    return size_text(limit)


def _refusal(code: int, piece: ByteRange) -> str:
    if code == errno.EAGAIN:
        return f"the system has no free memory for the pages of {piece.path.name}"
    if not may_lock(piece.nbytes):
        return f"this process may lock only {lock_limit()} of memory in total (RLIMIT_MEMLOCK)"
    if code == errno.ENOMEM:
        return f"{piece.path} cannot be read completely: it was truncated, or its disk is failing"
    return f"the pages of {piece.path.name} cannot be locked: {os.strerror(code)}"


def _mmap(nbytes: int, flags: int, descriptor: int) -> int:
    address: int | None = _libc().mmap(None, nbytes, mmap.PROT_READ, flags, descriptor, 0)
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


def _munmap(address: int, nbytes: int) -> None:
    failed = _libc().munmap(address, nbytes)
    assert not failed, os.strerror(ctypes.get_errno())


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library; calls through it release the GIL."""
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_long]
    libc.mmap.restype = pointer
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, number]
    libc.mlock.argtypes = [pointer, size]
    libc.mlock2.argtypes = [pointer, size, ctypes.c_uint]
    return libc
