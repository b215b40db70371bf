"""The gateway's side of screening: a process that is there while it is needed.

It may die, hang or be killed: a body is then looked at by another one, and refused if that fails as
well. Nothing else waits for it.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable

from cortex.api.screening.complexity import QUICK_SIGNS
from cortex.api.screening.process import LENGTH_BYTES
from protocol.errors import ErrorCode, FleetError
from protocol.runtime.die_with_parent import bound_to_this_process

log = logging.getLogger("api")

ANSWER_SECONDS = 10.0
"""How long one body may take, the start of the process included."""
IDLE_SECONDS = 60.0
"""How long the process is kept without a body to look at."""
TRIES = 2
_COMMAND = (sys.executable, "-P", "-m", "cortex.api.screening.process")
_CHUNK_BYTES = 1 << 20


class Screener:
    """Refuses bodies of too many values without holding the event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None

    @staticmethod
    def has_to_look(signs: int) -> bool:
        """Whether a body with so many brackets, braces and commas may have too many values."""
        return signs > QUICK_SIGNS

    async def check(self, body: bytes, on_turn: Callable[[bool], object] = lambda _: None) -> None:
        """Raises ``FleetError(INVALID_REQUEST)`` for a body of too many values. *on_turn* is told
        when its turn comes and when it is over."""
        field, why = await self._ask_patiently(body, on_turn)
        if why:
            advice = "Send a shorter request." if field or "twice" not in why else ""
            raise FleetError(ErrorCode.INVALID_REQUEST, f"{why} {advice}".rstrip(), param=field)

    async def close(self) -> None:
        """Ends the process, and waits until it is gone."""
        process = self._drop()
        if process is not None:
            await process.wait()

    def _drop(self) -> asyncio.subprocess.Process | None:
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # process.kill() takes its end from asyncio
        return process

    async def _ask_patiently(
        self, body: bytes, on_turn: Callable[[bool], object]
    ) -> tuple[str, str]:
        for _ in range(TRIES):
            async with self._turn:  # the second time behind all others: it may be to blame
                on_turn(True)
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        return await self._ask(body)
                except (TimeoutError, OSError, ValueError) as error:
                    log.warning("the process that looks at large bodies failed: %r", error)
                    self._drop()
                except asyncio.CancelledError:
                    self._drop()  # its next answer would be about this body
                    raise
                finally:
                    on_turn(False)
        raise FleetError(
            ErrorCode.OVERLOADED,
            f"The gateway could not look at the body within {TRIES * ANSWER_SECONDS:.0f} s. Try "
            "again in a moment, or send a shorter request.",
            retry_after_seconds=5,
        )

    async def _ask(self, body: bytes) -> tuple[str, str]:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(len(body).to_bytes(LENGTH_BYTES, "big"))
        for start in range(0, len(body), _CHUNK_BYTES):
            process.stdin.write(body[start : start + _CHUNK_BYTES])
            await process.stdin.drain()
        field, why = json.loads(await process.stdout.readline())
        self._keep_for_a_while()
        return str(field), str(why)

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *bound_to_this_process(*_COMMAND),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        return self._process

    def _keep_for_a_while(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._turn.locked():
            self._drop()
