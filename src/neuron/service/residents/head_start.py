"""Begins an engine's process while the room for its model is still being made.

Owns the process until it is taken; what nobody takes is ended. Without it a load is a few hundred
milliseconds slower, so whatever goes wrong here is only logged.
"""

import asyncio
import logging
from types import TracebackType
from typing import Self

from neuron.service.engine_protocol import PreparedEngine, PrepareEngine

log = logging.getLogger("model")


class HeadStart:
    """A process that prepares for one model; an asynchronous context manager."""

    def __init__(self, prepare: PrepareEngine | None, model_dir: str) -> None:
        """*prepare* None: there is no head start."""
        self._preparing: asyncio.Task[PreparedEngine] | None = None
        if prepare is not None:
            preparing = prepare(model_dir)
            self._preparing = asyncio.create_task(preparing, name=f"prepare {model_dir}")

    async def take(self) -> PreparedEngine | None:
        """Hands the process over, once; None when there is none."""
        if self._preparing is None:
            return None
        try:
            prepared = await asyncio.shield(self._preparing)
        except OSError as error:
            log.warning("no process can be started ahead: %s", error)
            prepared = None
        self._preparing = None
        return prepared

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        preparing, self._preparing = self._preparing, None
        if preparing is None:
            return
        if not preparing.done():
            preparing.cancel()
        (prepared,) = await asyncio.gather(preparing, return_exceptions=True)
        if not isinstance(prepared, BaseException):
            await prepared.drop()
