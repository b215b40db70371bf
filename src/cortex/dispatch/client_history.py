"""Which client used a model last, so that a swap can tell whom it would take something from.

A person, or an agent, that asks one model after another waits for each answer before the next
question. While such a client waits for a model, nobody will come back to the models that it alone
has just used: keeping them loaded would make it wait for nobody. Pure, but for the clock.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple


class _LastUse(NamedTuple):
    tenant: str
    at: float


class _Busy:
    """What a client has under way."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.does_one_thing = True
        """Whether all of it began together and for one model."""


class ClientHistory:
    """The clients of one gateway, by tenant; keeps those that have requests under way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy: dict[str, _Busy] = {}
        self._last_uses: dict[str, _LastUse] = {}

    def began(self, tenant: str, model: str) -> None:
        """Records that a request of *tenant* joined the queue of *model*."""
        busy = self._busy.setdefault(tenant, _Busy())
        busy.requests[model] += 1
        busy.does_one_thing = busy.does_one_thing and len(busy.requests) == 1

    def ended(self, tenant: str, model: str) -> None:
        """Records that a request is over, however it ended."""
        self._last_uses[model] = _LastUse(tenant, self._clock())
        busy = self._busy[tenant]
        busy.does_one_thing = False  # for what is left, if anything is
        busy.requests[model] -= 1
        busy.requests += Counter()  # without what is zero
        if not busy.requests:
            del self._busy[tenant]

    def forget(self, model: str) -> None:
        """Forgets a model that there is not."""
        self._last_uses.pop(model, None)

    def released_by(self, tenants: Collection[str], model: str) -> dict[str, float]:
        """Returns the models that nobody but *tenants* has used lately, with the seconds since:
        while they all wait for *model*, nobody misses these. Empty when one of *tenants*, all of
        which have requests under way, does something else as well: it may be several people."""
        if not all(self._busy[tenant].does_one_thing for tenant in tenants):
            return {}
        now = self._clock()
        return {
            name: now - last.at
            for name, last in self._last_uses.items()
            if last.tenant in tenants and name != model
        }
