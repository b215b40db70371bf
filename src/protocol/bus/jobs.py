"""The neurons' side of the hand-over stream ``JOBS``: they pull jobs while they have room. The
gateways' side is ``lanes``.

Pulling is better than pushing: a worker takes the next job exactly when it can run it, so that the
fastest free one gets it on any mix of machines. Each neuron keeps one open pull of one job per
lane, with a priority value that grows with its load; the server serves the lowest first.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from protocol import subjects
from protocol.bus.client import BusMessage
from protocol.bus.connection import Bus, Subscription
from protocol.job import Priority
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("bus")

STREAM = "JOBS"
MAX_DELIVERIES = 4
"""The fourth delivery is answered with POISON, not run."""
PULL_GROUP = "neurons"
PULL_EXPIRES_SECONDS = 2.0
_FIRST_PULLS = 4
_FIRST_EXPIRES_SECONDS = 0.25
"""Expiry of the first pulls after a connect: a JetStream that is still starting may swallow one."""
_IDLE_SECONDS = 0.01
_MAX_PULL_PRIORITY = 9

GIVE_BACK = b"-NAK"
"""Payload for a delivery's ack subject that gives the job to another neuron at once."""
GIVE_BACK_LATER = b'-NAK {"delay": 200000000}'
"""The same after a moment, as this neuron would be the first to get it again at once."""
TERMINATE = b"+TERM"
"""Payload for a delivery's ack subject that removes the job for good."""
IN_PROGRESS = b"+WPI"
"""Payload for a delivery's ack subject that puts off its next delivery."""


class Delivery(NamedTuple):
    """A job that was pulled, with its delivery."""

    data: bytes
    ack: str
    """Where to acknowledge; the gateway does that when it has seen ``Accepted``."""
    deliveries: int
    """The number of deliveries so far, 1 for the first."""


class JobPuller:
    """The neurons' side: one open pull per lane of one model, only while there is room."""

    def __init__(
        self,
        bus: Bus,
        model: str,
        *,
        has_room: Callable[[], bool],
        pull_priority: Callable[[], int],
        deliver: Callable[[Delivery], None],
    ) -> None:
        self._bus = bus
        self._model = model
        self._has_room = has_room
        self._pull_priority = pull_priority
        self._deliver = deliver
        self._wake = asyncio.Event()
        self._lanes: dict[Priority, _Lane] = {}

    def is_idle(self, priority: Priority) -> bool:
        """Whether no job of this priority or a higher one waits in the stream: the pulls have been
        open for a moment without a reply."""
        before = list(Priority)[: list(Priority).index(priority) + 1]
        return all(p in self._lanes and self._lanes[p].is_idle for p in before)

    def wake(self) -> None:
        """Looks again at once, as room may have appeared."""
        self._wake.set()

    async def run(self) -> None:
        """Pulls jobs until it is cancelled."""
        async with asyncio.TaskGroup() as lanes:
            for priority in Priority:
                lanes.create_task(self._run_lane(priority), name=f"pull {self._model} {priority}")

    async def _run_lane(self, priority: Priority) -> None:
        consumer = subjects.lane_consumer(self._model, priority)
        lane = _Lane(self._bus, consumer, self._deliver)
        lost = asyncio.Event()

        async def reconnected() -> None:
            lost.set()  # the server has forgotten the open pull

        forget_reconnect = self._bus.on_reconnect(reconnected)
        await lane.open()
        self._lanes[priority] = lane
        first = 0
        try:
            while True:
                if not self._has_room():
                    self._wake.clear()
                    if not self._has_room():
                        await self._wait_for_room()
                    continue
                if lost.is_set():
                    first = _FIRST_PULLS
                    lost.clear()
                seconds = _FIRST_EXPIRES_SECONDS if first else PULL_EXPIRES_SECONDS
                first = max(0, first - 1)
                await lane.pull_once(self._pull_priority(), lost, seconds)
        finally:
            del self._lanes[priority]
            forget_reconnect()
            await lane.close()

    async def _wait_for_room(self) -> None:
        await wait_at_most(self._wake, 1.0)


class _Lane:
    """One consumer's open pull. The inbox belongs to this instance: a late delivery to it is still
    a delivery, so that nothing the server hands out between two pulls is lost."""

    def __init__(self, bus: Bus, consumer: str, deliver: Callable[[Delivery], None]) -> None:
        self._bus = bus
        self._consumer = consumer
        self._deliver = deliver
        self._inbox = bus.new_inbox()
        self._ended = asyncio.Event()
        self._missing = False
        self._is_closing = False
        self._asked_at = float("inf")
        self._subscription: Subscription | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._subscription = await self._bus.subscribe(self._inbox, self._received)

    async def close(self) -> None:
        """Ends the pull and gives back a job that was on its way, which would otherwise be missing
        for a second."""
        self._is_closing = True
        if self._subscription:
            await self._subscription.drain()
        if self._answers:
            await asyncio.wait(self._answers)

    @property
    def is_idle(self) -> bool:
        """Whether the pull has been open for longer than a waiting job would take to arrive."""
        return time.monotonic() - self._asked_at > _IDLE_SECONDS

    async def pull_once(self, priority: int, lost: asyncio.Event, seconds: float) -> None:
        """Posts one pull and waits until it is served, expired after *seconds*, or lost."""
        self._ended.clear()
        self._missing = False
        request = {
            "batch": 1,
            "expires": int(seconds * 1e9),
            "group": PULL_GROUP,
            "priority": min(max(priority, 0), _MAX_PULL_PRIORITY),
        }
        await self._bus.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self._consumer}",
            json.dumps(request).encode(),
            reply=self._inbox,
        )
        self._asked_at = time.monotonic()
        waits = [asyncio.ensure_future(self._ended.wait()), asyncio.ensure_future(lost.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds + 0.25, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._asked_at = float("inf")
            for wait in waits:
                wait.cancel()
        if self._missing:
            await asyncio.sleep(0.1)  # no gateway has provisioned this model yet

    def _received(self, message: BusMessage) -> None:
        status = message.headers.get("Status")
        if status is not None:
            self._missing = status not in ("408", "404")
            self._ended.set()
            return
        self._ended.set()
        if self._is_closing:
            answer = asyncio.create_task(self._bus.publish(message.reply, GIVE_BACK))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
            return
        self._deliver(Delivery(message.data, message.reply, _deliveries(message.reply)))


def _deliveries(ack: str) -> int:
    """Reads the number of deliveries from the ack subject:
    ``$JS.ACK.<stream>.<consumer>.<count>.…``, or with domain and account before the stream."""
    parts = ack.split(".")
    position = 4 if len(parts) < 11 else 6
    return int(parts[position]) if len(parts) > position and parts[position].isdigit() else 1
