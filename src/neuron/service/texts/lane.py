"""A text process that is always there: requests one after the other, whatever happens to it.

Owns the process, its replacement, and what becomes of the request that it died with: blamed, that
one is refused; otherwise it is done again. The requests behind it only wait a little longer.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from neuron.engine_process.launch import LaunchText
from neuron.ipc.text_messages import LoadText, TextAnswer, TextLoaded, TextRefused, ToText, Working
from neuron.service.texts.process import TextProcess, TextProcessDied
from protocol.errors import ErrorCode, FleetError

log = logging.getLogger("texts")

TRIES = 3
"""How often a request is tried whose process is ended from outside."""
_PAUSES = (0.0, 0.2, 1.0)
"""Seconds before each start of a process that died while it read the model."""
_CLOSE_SECONDS = 2.0
"""How long the end of killed processes is waited for: one that waits for a disk ends later."""

Explain = Callable[[TextProcessDied], FleetError]
"""Words the refusal of a request that is to blame."""


class Lane:
    """One text process of a model, or its successor."""

    def __init__(
        self, launch: LaunchText, load: LoadText, expected: TextLoaded | None = None
    ) -> None:
        """*expected*: what its process must read, if that is known."""
        self._launch = launch
        self._load = load
        self._turn = asyncio.Lock()
        self._process: TextProcess | None = None
        self._starting: asyncio.Task[TextProcess] | None = None
        self._loading: TextProcess | None = None
        self._loaded = expected
        self._is_closed = False
        self._askers = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dying: set[asyncio.Task[str]] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the process and of the one that is to replace it, if there are any."""
        known = (self._process, self._loading)
        return tuple(process.pid for process in known if process and process.is_alive)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being done, or waits."""
        return self._askers > 0

    async def open(self) -> TextLoaded:
        """Starts the process; returns what it has read. Raises ``FleetError`` that says what is
        wrong with the model's files."""
        await self._ready()
        assert self._loaded is not None
        return self._loaded

    async def ask(self, message: ToText, work: Working, explain: Explain) -> TextAnswer:
        """Has a request done, which begins with *work*; returns its answer.

        Raises ``FleetError``: by *explain* when the request is to blame for the end of the process;
        MODEL_UNAVAILABLE when it was ended from outside again and again. When the caller is
        cancelled, work that has begun is finished nevertheless, and its answer dropped.
        """
        self._askers += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._askers -= 1
            raise
        asking = self._spawn(self._ask(message, work, explain))
        asking.add_done_callback(self._pass_on)  # also if it is cancelled before it has begun
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Ends the process; requests that are still asked fail."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        self._drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._dying:
            await asyncio.wait(self._dying, timeout=_CLOSE_SECONDS)
        await asyncio.sleep(0)  # their channels are closed in the loop's next round

    async def _ask(self, message: ToText, work: Working, explain: Explain) -> TextAnswer:
        """Does the work of whoever has the turn."""
        for left in reversed(range(TRIES)):
            process = await self._replacement()
            try:
                answer = await process.ask(message, work)
                if isinstance(answer, TextRefused) and answer.is_last:
                    self._drop()
                    self._restart()
                return answer
            except TextProcessDied as death:
                self._drop()
                self._restart()
                log.warning("the text process of %s ended: %s", self._load.folder, death)
                if death.is_to_blame:
                    raise explain(death) from None
                if not left:
                    raise self._unavailable(f"its text process ended: {death}") from None
            except BaseException:
                self._drop()  # it may still be at work
                raise
        raise AssertionError("the last try ends it")

    def _pass_on(self, asking: asyncio.Task[TextAnswer]) -> None:
        """Gives the turn to the next."""
        self._askers -= 1
        self._turn.release()

    async def _replacement(self) -> TextProcess:
        """The process; where it cannot be started again, no request is to blame."""
        try:
            return await self._ready()
        except FleetError as error:
            raise self._unavailable(str(error).rstrip(".")) from error

    # -- the process ---------------------------------------------------------------------------

    async def _ready(self) -> TextProcess:
        if self._process is not None and self._process.is_alive:
            return self._process
        self._drop()
        if self._starting is None:
            self._restart()
        assert self._starting is not None
        return await asyncio.shield(self._starting)

    def _restart(self) -> None:
        """Begins to start a process, unless one is being started."""
        if self._is_closed:
            raise self._unavailable("it is being unloaded")
        if self._starting is None:
            self._starting = self._spawn(self._start())
            self._starting.add_done_callback(self._has_started)

    def _has_started(self, starting: asyncio.Task[TextProcess]) -> None:
        self._starting = None

    async def _start(self) -> TextProcess:
        """Starts and loads a process, again if it is ended from outside meanwhile."""
        for left in reversed(range(TRIES)):
            await asyncio.sleep(_PAUSES[TRIES - 1 - left])
            try:
                return await self._start_once()
            except OSError as error:
                raise self._unavailable(f"no text process can be started: {error}") from error
            except TextProcessDied as death:
                log.warning("the text process of %s ended: %s", self._load.folder, death)
                if death.is_to_blame:
                    raise self._unusable(death) from None
                if not left:
                    raise self._unavailable(f"its {death.working.what}: {death}") from None
        raise AssertionError("the last try ends it")

    async def _start_once(self) -> TextProcess:
        self._loading = process = await TextProcess.start(self._launch)
        try:
            self._check(await process.ask(self._load, Working("files", 0.0)))
        except BaseException:
            self._end(process)
            raise
        finally:
            self._loading = None
        self._process = process
        process.ended.add_done_callback(lambda _: self._has_died(process))
        return process

    def _check(self, answer: TextAnswer) -> None:
        if isinstance(answer, TextRefused):
            raise FleetError.of(answer.error)
        assert isinstance(answer, TextLoaded)
        if self._loaded is not None and self._loaded.identity != answer.identity:
            raise self._unavailable(
                "its template or tokenizer has changed since it was loaded; unload it, and load it "
                "again"
            )
        self._loaded = answer

    def _has_died(self, process: TextProcess) -> None:
        """Replaces a process that died while it had nothing to do."""
        if self._process is process and not self.is_busy and not self._is_closed:
            log.warning("the text process of %s ended while it was idle", self._load.folder)
            self._drop()
            with contextlib.suppress(FleetError):
                self._restart()

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._end(process)

    def _end(self, process: TextProcess) -> None:
        process.kill()
        if not process.ended.done():
            self._dying.add(process.ended)
            process.ended.add_done_callback(self._dying.discard)

    def _unavailable(self, why: str) -> FleetError:
        return FleetError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"The texts of the model in {self._load.folder} cannot be prepared: {why}.",
            retry_after_seconds=2,
        )

    def _unusable(self, death: TextProcessDied) -> FleetError:
        work = death.working
        how = (
            "takes too long" if death.was_too_slow else f"ends the process that reads it ({death})"
        )
        return FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The model folder {self._load.folder} cannot be used: reading {work.what} {how}. "
            "Correct that file or download the model again.",
            param="model",
        )

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="texts")
        self._tasks.add(task)
        task.add_done_callback(self._has_ended)
        return task

    def _has_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever still waits for it has it too
