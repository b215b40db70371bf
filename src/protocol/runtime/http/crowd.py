"""How many connections an HTTP server keeps, and which one goes when there are too many.

Pure bookkeeping. A connection rests while no request is under way on it; HTTP lets a server close
such a connection at any time, so a new client is refused only where nobody rests.
"""

from collections import Counter
from typing import Generic, NamedTuple, TypeVar

from protocol.runtime.listen import address_group

C = TypeVar("C")


class HttpLimits(NamedTuple):
    """Bounds of one HTTP server."""

    connections: int = 8192
    """How many there may be in all."""
    per_address: int = 1024
    """How many of them one client's address may have; 0 means no such bound. It never applies to
    loopback, where a proxy stands for all of its clients."""
    http2: bool = False
    """Whether HTTP/2 is spoken."""


class Crowd(Generic[C]):
    """The connections that are open, by their client's address."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._group_of: dict[C, str] = {}
        self._sizes: Counter[str] = Counter()
        self._resting: dict[str, dict[C, None]] = {}
        """Those that rest, in the order in which they came to rest."""

    def __len__(self) -> int:
        return len(self._group_of)

    def add(self, connection: C, peer: str) -> None:
        """Adds a connection that rests."""
        group = address_group(peer)
        self._group_of[connection] = group
        self._sizes[group] += 1
        self.rests(connection)

    def remove(self, connection: C) -> None:
        """Forgets a connection that has ended."""
        self.works(connection)
        group = self._group_of.pop(connection)
        self._sizes[group] -= 1
        if not self._sizes[group]:
            del self._sizes[group]

    def rests(self, connection: C) -> None:
        """Notes that no request is under way on a connection."""
        self._resting.setdefault(self._group_of[connection], {})[connection] = None

    def works(self, connection: C) -> None:
        """Notes that a request is under way on a connection, or that it is about to be closed."""
        group = self._group_of[connection]
        resting = self._resting.get(group, {})
        resting.pop(connection, None)
        if not resting:
            self._resting.pop(group, None)

    def resting(self) -> list[C]:
        """Returns the connections that rest."""
        return [connection for group in self._resting.values() for connection in group]

    def too_many(self, peer: str) -> bool:
        """Whether there is no room for one more from *peer*."""
        return self._is_full or self._has_its_share(address_group(peer))

    def makes_way(self, peer: str) -> C | None:
        """Returns the connection to close so that *peer* has room: of its own address where that
        has its share already, otherwise of the address that has the most; there, the one that has
        rested longest. None where nobody who could make way rests."""
        group = address_group(peer)
        if not self._has_its_share(group):
            group = max(self._resting, key=self._sizes.__getitem__, default=group)
        return next(iter(self._resting.get(group, ())), None)

    @property
    def _is_full(self) -> bool:
        return len(self._group_of) >= self._limits.connections

    def _has_its_share(self, group: str) -> bool:
        bound = self._limits.per_address
        return bool(group and bound) and self._sizes[group] >= bound
