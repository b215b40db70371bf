"""Keeps the lanes of models: makes missing consumers again, and removes those that nobody needs."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from protocol import subjects
from protocol.bus import JobLanes, StorageError
from protocol.job import Priority
from protocol.names import InvalidName, untoken

log = logging.getLogger("storage")

UNNEEDED_SECONDS = 60.0
"""How long a model must be on no node before its lanes go."""
REPLACE_EVERY_SECONDS = 2.0
"""Shortest time between two replacements of a model's consumers."""


class Stuck(NamedTuple):
    """A job that lies in the stream although some node has room for it."""

    model: str
    priority: Priority
    sequence: int


class LaneKeeper:
    """The consumers of all models."""

    def __init__(
        self, lanes: JobLanes, models: Callable[[], Iterable[str]], keep_seconds: float
    ) -> None:
        """*models* are those that some node has, *keep_seconds* how long they count as such
        afterwards."""
        self._lanes = lanes
        self._models = models
        self._keep_seconds = keep_seconds
        self._unneeded: dict[str, float] = {}
        self._replaced: dict[str, float] = {}

    async def look(self, stuck: Iterable[Stuck] = ()) -> None:
        """Looks once. A lane that does not deliver a *stuck* job is made anew; one that has
        delivered it is not: its prompt is being prepared. Raises ``StorageError``."""
        there, models = await self._lanes.consumers(), set(self._models())
        for model in models:
            if not there.issuperset(_lanes_of(model)):
                self._lanes.forget_model(model)
                await self._provision(model)
        now = time.monotonic()
        for model, priority, sequence in stuck:
            if now - self._replaced.get(model, float("-inf")) <= REPLACE_EVERY_SECONDS:
                continue
            if await self._lanes.does_not_deliver(model, priority, sequence):
                self._replaced[model] = now
                log.warning("jobs of %s are not delivered; making its consumers anew", model)
                await self._lanes.replace_model(model)
        await self._remove_unneeded(there, models, now)

    async def _provision(self, model: str) -> None:
        """One model that cannot have lanes does not keep the others from having theirs."""
        try:
            await self._lanes.provision_model(model)
        except StorageError as error:
            log.warning("cannot make the lanes of %s: %s", model, error)

    async def _remove_unneeded(self, there: set[str], models: set[str], now: float) -> None:
        unneeded = {name for name in there if (model := _model_of(name)) and model not in models}
        self._unneeded = {name: self._unneeded.get(name, now) for name in unneeded}
        gone = [name for name, at in self._unneeded.items() if now - at >= self._keep_seconds]
        for name in gone:
            del self._unneeded[name]
            if await self._lanes.is_in_use(name):
                continue  # by nodes that another gateway serves
            self._lanes.forget_model(_model_of(name))
            await self._lanes.remove([name])


def _lanes_of(model: str) -> Iterator[str]:
    return (subjects.lane_consumer(model, priority) for priority in Priority)


def _model_of(consumer: str) -> str:
    """The model of a lane; empty for a consumer that is somebody else's."""
    token, _, priority = consumer.rpartition("-")
    try:
        return untoken(token) if priority in set(Priority) else ""
    except InvalidName:
        return ""
