"""Tells when the other side of a half-closed connection is gone altogether.

A client that has closed its sending half (``FIN``) may still read: TCP cannot tell it from one that
has left. If it has left, its machine answers the next byte that it gets with a reset. asyncio looks
at a connection only while it reads or writes, and there is nothing more to read, so the reset is
awaited here: the kernel reports it for every descriptor, whatever else is asked for.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable


class HangUps:
    """The connections that are watched. Only Linux has what it needs; elsewhere
    ``is_possible`` is False."""

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll:
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    @property
    def is_possible(self) -> bool:
        """Whether anything can be watched here."""
        return self._epoll is not None

    def watch(self, descriptor: int, call: Callable[[], None]) -> None:
        """Calls *call* once when the peer of a socket has reset the connection."""
        assert self._epoll
        self._calls[descriptor] = call
        # Nothing is asked for, so that only errors and hang-ups are reported.
        self._epoll.register(descriptor, 0)

    def forget(self, descriptor: int, call: Callable[[], None]) -> None:
        """Ends a watch; to be called before the socket is closed. The number may belong to another
        socket by now if the peer was quicker."""
        if self._calls.get(descriptor) == call:
            del self._calls[descriptor]
            self._unregister(descriptor)

    def close(self) -> None:
        """Ends all watches."""
        if self._epoll:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._calls.clear()

    def _look(self) -> None:
        assert self._epoll
        for descriptor, _ in self._epoll.poll(0):
            self._unregister(descriptor)
            if call := self._calls.pop(descriptor, None):
                call()

    def _unregister(self, descriptor: int) -> None:
        assert self._epoll
        with contextlib.suppress(OSError):  # it was closed, which ends the registration
            self._epoll.unregister(descriptor)
