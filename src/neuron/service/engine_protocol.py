"""What the service needs from an engine: the interface of ``EngineProcess``.

Tests use it to put a scripted engine into the real service.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol

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
    """Resolves to the exit reason when the engine has ended."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the engine's processes."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The engine's state after its last step."""
        ...

    async def add(self, add: Add) -> AsyncIterator[Output | Progress | Refused]:
        """Starts a generation; iterating raises ``EngineDied`` when the engine ends first."""
        ...

    def abort(self, sequence_id: int) -> None:
        """Ends a generation; unknown ids are ignored."""

    async def stop(self, grace_seconds: float = ...) -> None:
        """Ends the engine, forcibly after *grace_seconds*."""


class StartEngine(Protocol):
    """Loads a model. Raises ``EngineLoadError``."""

    def __call__(
        self, start: Start, *, on_progress: Callable[[Loading], None]
    ) -> Awaitable[Engine]:
        """Returns the engine once it is ready."""
        ...


class PreparedEngine(Protocol):
    """A process that has done what it can for a model before there is room for it."""

    def start(self, start: Start, *, on_progress: Callable[[Loading], None]) -> Awaitable[Engine]:
        """Like :class:`StartEngine`, once."""
        ...

    async def drop(self) -> None:
        """Ends it, if it was not started."""


PrepareEngine = Callable[[str], Coroutine[Any, Any, PreparedEngine]]
"""Begins the process of the model in a folder."""
