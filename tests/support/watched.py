"""The real engine process, with every Step noted as the service sees it."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from neuron.engine_process.client import EngineProcess
from neuron.engine_process.watchdog import Deadlines
from neuron.ipc.messages import FromEngine, Loading, Start, Step
from tests.support.fleet import TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.waiting import until


class Seen(NamedTuple):
    """A step and when its report arrived (monotonic seconds)."""

    at: float
    step: Step

    @property
    def ids(self) -> set[int]:
        """Sequences that took part."""
        return {o.id for o in self.step.outputs} | {p.id for p in self.step.progress}


class WatchedEngines:
    """Takes the place of ``EngineProcess.start`` in a node; *changes* go into every Start.

    Engines have one thread, as their models are small and other tests run beside them.
    """

    def __init__(self, *, deadlines: Deadlines | None = None, **changes: object) -> None:
        self._changes = {"threads": 1, **changes}
        self._deadlines = deadlines
        self.engine: EngineProcess | None = None
        self.steps: list[Seen] = []

    @property
    def alive(self) -> EngineProcess:
        """The newest engine."""
        assert self.engine is not None, "none has been started"
        return self.engine

    async def start(self, start: Start, *, on_progress: Callable[[Loading], None]) -> EngineProcess:
        """Starts a real engine."""
        start = msgspec.structs.replace(start, **self._changes)
        engine = await EngineProcess.start(
            start, on_progress=on_progress, deadlines=self._deadlines
        )
        handle = engine._handle

        def note(message: FromEngine) -> None:
            if isinstance(message, Step):
                self.steps.append(Seen(time.monotonic(), message))
            handle(message)

        engine._handle = note  # type: ignore[method-assign]
        self.engine = engine
        return engine

    def steps_of(self, sequence: int) -> list[Seen]:
        """The steps that a sequence took part in."""
        return [seen for seen in self.steps if sequence in seen.ids]

    @property
    def newest(self) -> int:
        """The highest sequence id that took part in a step."""
        return max((i for seen in self.steps for i in seen.ids), default=0)

    def is_quiet(self, seconds: float) -> bool:
        """Whether no step has been reported for so long."""
        return time.monotonic() - self.steps[-1].at > seconds


@contextlib.asynccontextmanager
async def real_fleet(
    nats: NatsServer, engines: WatchedEngines, *, slots: int = 8
) -> AsyncIterator[TestFleet]:
    """A fleet with one node that serves the demo model."""
    async with running_fleet(nats) as fleet:
        await fleet.add_node(engines.start, slots=slots)
        await until(lambda: fleet.gateway.fleet.ready("cortex-demo"), seconds=30)
        yield fleet
