"""Decides whose turn it is: deficit round robin over tenants, one ring for each priority. Pure.

Deficit round robin (Shreedhar & Varghese, SIGCOMM 1995): each round gives every waiting tenant the
same allowance of work; a request is served once its tenant has saved up the request's cost.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from protocol.job import Priority

QUANTUM = 256
"""Tokens of allowance per round; fewer than most requests cost, so that tenants alternate."""


class Queued(Protocol):
    """A request that waits for its turn."""

    @property
    def tenant(self) -> str:
        """The tenant that sent it."""
        ...

    @property
    def priority(self) -> Priority:
        """The priority, which selects its ring."""
        ...

    @property
    def cost(self) -> int:
        """Its cost in tokens, at least 1."""
        ...


W = TypeVar("W", bound=Queued)


class _Queue(Generic[W]):
    """One tenant's requests of one priority."""

    def __init__(self) -> None:
        self.waiting: deque[W] = deque()
        self.deficit = 0


class FairQueue(Generic[W]):
    """All requests that wait, by priority and tenant."""

    def __init__(self) -> None:
        self._rings: dict[Priority, dict[str, _Queue[W]]] = {p: {} for p in Priority}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[W]:
        return (
            one for ring in self._rings.values() for queue in ring.values() for one in queue.waiting
        )

    def of_tenant(self, tenant: str) -> int:
        """Counts the waiting requests of one tenant."""
        queues = (ring.get(tenant) for ring in self._rings.values())
        return sum(len(queue.waiting) for queue in queues if queue)

    def add(self, one: W) -> None:
        """Appends a request behind those of its tenant and priority."""
        self._rings[one.priority].setdefault(one.tenant, _Queue()).waiting.append(one)
        self._count += 1

    def remove(self, one: W) -> None:
        """Removes a request that no longer waits."""
        ring = self._rings[one.priority]
        ring[one.tenant].waiting.remove(one)
        self._count -= 1
        if not ring[one.tenant].waiting:
            del ring[one.tenant]  # with its deficit: an idle tenant saves nothing up

    def take(self, may: Callable[[str], bool]) -> W | None:
        """Removes and returns the next request of a tenant that *may* have a turn; None if there is
        none."""
        for ring in self._rings.values():
            queue = _next(ring, may)
            if queue is not None:
                one = queue.waiting[0]
                queue.deficit -= one.cost
                self.remove(one)
                return one
        return None


def _next(ring: dict[str, _Queue[W]], may: Callable[[str], bool]) -> _Queue[W] | None:
    """The queue whose first request is served next; those that it passes have saved up more."""
    passed: list[str] = []
    for tenant, queue in ring.items():
        if not may(tenant):
            continue
        if queue.deficit >= queue.waiting[0].cost:
            _credit(ring, passed)
            return queue
        passed.append(tenant)
    if not passed:
        return None
    # Rounds in which nobody is served are made up for at once: a cost may be any number.
    _credit(ring, passed, min(_rounds(ring[tenant]) for tenant in passed))
    served = next(tenant for tenant in passed if not _rounds(ring[tenant]))
    _credit(ring, passed[: passed.index(served)])
    return ring[served]


def _rounds(queue: _Queue[W]) -> int:
    """How many more allowances a tenant needs for its first request."""
    return max(0, -((queue.deficit - queue.waiting[0].cost) // QUANTUM))


def _credit(ring: dict[str, _Queue[W]], tenants: list[str], rounds: int = 1) -> None:
    """Gives tenants their allowances, and moves them to the end of the ring."""
    for tenant in tenants:
        ring[tenant].deficit += rounds * QUANTUM
        ring[tenant] = ring.pop(tenant)
