"""How much memory bodies may take together until they are decoded, and which one gives way.

Pure bookkeeping. What one client sends must not keep the others from sending: the address that
holds the most gives way, and there the large body that began last. So the oldest large one gets to
its end, and nobody is refused on account of what another address holds. A body that has come counts
until it has been looked at, and gives way like the others except while it is.
"""

import itertools
from collections import Counter
from collections.abc import Callable

from protocol.runtime.sizes import size_text

MAX_UNFINISHED_BYTES = 64 << 20
"""What all bodies of a gateway that are arriving or being looked at may hold together."""
SMALL_BYTES = 64 << 10
"""Up to this size a body gives way only where its address has no larger one."""


class UnfinishedBody:
    """What has arrived of one body."""

    def __init__(self, address: str, number: int) -> None:
        self.address = address
        self.number = number
        """Its place in the order of beginnings."""
        self.data = bytearray()
        self.size = 0
        """What it holds."""
        self.signs = 0
        """Brackets, braces and commas in it, by which bodies of many values are found."""
        self.is_fixed = False
        """Whether it does not give way now."""
        self.gave_way = False
        self.on_giving_way: Callable[[], object] = lambda: None
        """Called when others have taken its place; its bytes are gone then."""


class BodyBudget:
    """The bodies of one gateway that are not decoded yet."""

    def __init__(self, limit: int = MAX_UNFINISHED_BYTES) -> None:
        self.limit = limit
        self._bodies: dict[UnfinishedBody, None] = {}
        self._held = 0
        self._numbers = itertools.count()

    @property
    def held_bytes(self) -> int:
        """What all of them hold."""
        return self._held

    @property
    def limit_text(self) -> str:
        """The limit, for people."""
        return size_text(self.limit)

    def begin(self, address: str) -> UnfinishedBody:
        """Starts an empty body."""
        body = UnfinishedBody(address, next(self._numbers))
        self._bodies[body] = None
        return body

    def add(self, body: UnfinishedBody, chunk: bytes) -> None:
        """Adds to a body; others, or the body itself, give way when it does not fit."""
        while self._held + len(chunk) > self.limit and not body.gave_way:
            self._give_way(self._victim(body, len(chunk)))
        if not body.gave_way:
            body.data += chunk
            body.size += len(chunk)
            self._held += len(chunk)

    def discard(self, body: UnfinishedBody) -> None:
        """Drops a body that is done with or given up; does nothing if it is gone already."""
        if body in self._bodies:
            del self._bodies[body]
            self._held -= body.size
            body.size = 0
            body.data = bytearray()  # what was read may still be in use

    def _victim(self, growing: UnfinishedBody, by: int) -> UnfinishedBody:
        sizes = {body: body.size for body in self._bodies}
        sizes[growing] += by
        totals: Counter[str] = Counter()
        for body, size in sizes.items():
            totals[body.address] += size
        possible = [body for body in sizes if not body.is_fixed]
        most = max((body.address for body in possible), key=totals.__getitem__)
        theirs = [body for body in possible if body.address == most]
        large = [body for body in theirs if sizes[body] > SMALL_BYTES]
        return max(large or theirs, key=lambda body: body.number)

    def _give_way(self, body: UnfinishedBody) -> None:
        body.gave_way = True
        self.discard(body)
        body.on_giving_way()
