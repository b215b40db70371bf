"""What the service needs of an engine: the shape of ``EngineProcess``, so that tests can put a
scripted one into the real service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from neuron.ipc.messages import (
    Add,
    EngineStats,
    Loading,
    Output,
    Progress,
    Ready,
    Refused,
    Start,
)


class Engine(Protocol):
    """A loaded model that generates."""

    ready: Ready
    died: asyncio.Future[str]
    """Resolves to the reason when the engine has ended."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Of its processes."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The state after the last step."""
        ...

    async def add(self, add: Add) -> AsyncIterator[Output | Progress | Refused]:
        """Starts a generation; iterating raises ``EngineDied`` when the engine ends first."""
        ...

    def abort(self, sequence_id: int) -> None:
        """Ends a generation; unknown ids are ignored."""

    async def stop(self, grace_seconds: float = ...) -> None:
        """Ends the engine."""


class StartEngine(Protocol):
    """Loads a model; raises ``EngineLoadError``."""

    def __call__(
        self, start: Start, *, on_progress: Callable[[Loading], None]
    ) -> Awaitable[Engine]:
        """Returns when the engine is ready."""
        ...
