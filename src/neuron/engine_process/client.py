"""The engine process as the neuron service sees it: start, add, abort, watch, stop; no torch.

Owns the engine's processes, usually one. A stuck engine is killed; a dead one ends every open
stream with :class:`EngineDied`. Starting a new one is the service's business.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import assert_never

import msgspec

from neuron.engine_process.launch import Launch, start_python
from neuron.engine_process.rank_processes import RankProcesses
from neuron.engine_process.sequence_stream import EngineDied, SequenceStream, is_last
from neuron.engine_process.watchdog import Deadlines, StepWatch
from neuron.ipc.channel import ChannelClosed
from neuron.ipc.messages import (
    Abort,
    Add,
    EngineStats,
    Fatal,
    FromEngine,
    LoadFailed,
    Loading,
    LoadStage,
    Output,
    Progress,
    Ready,
    Refused,
    Shutdown,
    Start,
    Step,
)
from neuron.models.errors import LoadCode

OnProgress = Callable[[Loading], None]
LOOK_SECONDS = 0.5
"""Time between two looks at whether the engine is stuck."""
STOP_GRACE_SECONDS = 5.0


class EngineLoadError(Exception):
    """Raised when an engine does not become ready; has the fields of ``LoadFailed``.

    *code* can also be ``crashed`` when the process ended, and ``timeout`` when it fell silent.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class EngineProcess:
    """A loaded engine. Create it with :meth:`start`."""

    def __init__(self, ranks: RankProcesses, ready: Ready, deadlines: Deadlines) -> None:
        self.ready = ready
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolves to the exit reason once the process has ended, however it ended."""
        self._ranks = ranks
        self._watch = StepWatch(deadlines)
        self._streams: dict[int, SequenceStream] = {}
        self._last_step: Step | None = None
        self._last_step_at = 0.0
        self._prefixes: tuple[str, ...] = ()
        self._reason = ""
        self._task = asyncio.create_task(self._serve(), name=f"engine-{self.pid}")

    @classmethod
    async def start(
        cls,
        start: Start,
        *,
        on_progress: OnProgress = lambda _: None,
        deadlines: Deadlines | None = None,
        launch: Launch = start_python,
        prepared: RankProcesses | None = None,
    ) -> "EngineProcess":
        """Starts an engine and waits until it is ready.

        Where ``start.devices`` share the model, each of them gets a process, made by *launch*
        unless there is a *prepared* one, which it takes over. Raises :class:`EngineLoadError`.
        Cancelling it ends the processes.
        """
        deadlines = deadlines or Deadlines()
        starts = [msgspec.structs.replace(start, device=device) for device in start.devices] or [
            start
        ]
        ranks = prepared or await RankProcesses.spawn(len(starts), launch)
        try:
            await ranks.begin(starts)
            ready = await _loaded(ranks, start, on_progress, deadlines)
        except BaseException as error:
            if not isinstance(error, EngineLoadError):
                ranks.kill()
            await ranks.reap()
            raise
        return cls(ranks, ready, deadlines)

    @property
    def pid(self) -> int:
        """Process id of rank 0."""
        return self._ranks.pids[0]

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of all ranks, in order."""
        return self._ranks.pids

    @property
    def stats(self) -> EngineStats:
        """The engine's state after its last step."""
        step = self._last_step
        if step is None:
            return EngineStats(kv_tokens_free=self.ready.kv_cache_tokens, open=len(self._streams))
        return EngineStats(
            open=len(self._streams),
            running=step.running,
            queued=step.queued,
            kv_tokens_free=step.kv_tokens_free,
            kv_tokens_cached=step.kv_tokens_cached,
            preemptions=step.preemptions,
            prefixes=self._prefixes,
            step_number=step.number,
            step_seconds=step.seconds,
            step_age_seconds=asyncio.get_running_loop().time() - self._last_step_at,
        )

    async def add(self, add: Add) -> SequenceStream:
        """Starts generating. The id must not be in use. Raises :class:`EngineDied`."""
        if self.died.done():
            raise EngineDied(self.died.result())
        if add.id in self._streams:
            raise ValueError(f"sequence id {add.id} is already in use")
        stream = self._streams[add.id] = SequenceStream(add.id)
        try:
            await self._ranks.send(add)
        except ChannelClosed:
            pass  # the stream learns why as soon as the process has ended
        except BaseException:
            self.abort(add.id)
            raise
        return stream

    def abort(self, sequence_id: int) -> None:
        """Ends a generation; its stream ends after what has already been delivered.

        Unknown and finished ids are ignored.
        """
        stream = self._streams.pop(sequence_id, None)
        if stream is not None:
            stream.end()
            self._ranks.send_soon(Abort(sequence_id))

    async def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Ends the process, forcibly after *grace_seconds*; returns when it is gone."""
        self._reason = self._reason or "it was stopped"
        self._ranks.send_soon(Shutdown())
        try:
            async with asyncio.timeout(grace_seconds):
                await asyncio.shield(self._task)
        except TimeoutError:
            self._ranks.kill()
            await asyncio.shield(self._task)

    async def _serve(self) -> None:
        """Handles messages until the engine ends.

        Other ranks only report why they end; their messages about the load may still arrive late.
        """
        watchdog = asyncio.create_task(self._watch_steps(), name=f"watchdog-{self.pid}")
        try:
            while (arrived := await self._ranks.receive()).messages:
                for message in arrived.messages:
                    if arrived.rank == 0:
                        self._handle(message)
                    elif isinstance(message, Fatal):
                        self._reason = message.message
            self._reason = self._reason or arrived.fault
        finally:
            watchdog.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watchdog
            await self._bury()

    async def _bury(self) -> None:
        """Reaps the processes after a channel ended, and ends all streams with the exit reason."""
        exit_reason = await self._ranks.reap()
        reason = f"{self._reason} ({exit_reason})" if self._reason else exit_reason
        self.died.set_result(reason)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end(EngineDied(reason))

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._watch.step(message.seconds)
                self._last_step = message
                if message.prefixes is not None:
                    self._prefixes = message.prefixes
                self._last_step_at = asyncio.get_running_loop().time()
                for output in message.outputs:
                    self._deliver(output)
                for progress in message.progress:
                    self._deliver(progress)
            case Refused():
                self._deliver(message)
            case Fatal():
                self._reason = message.message
            case Ready() | Loading() | LoadFailed():
                self._reason = f"it sent {type(message).__name__} while serving"
                self._ranks.kill()
            case _:
                assert_never(message)

    def _deliver(self, event: Output | Progress | Refused) -> None:
        stream = self._streams.get(event.id)
        if stream is None:
            return  # aborted while the event was in transit
        stream.push(event)
        if is_last(event):
            del self._streams[event.id]

    async def _watch_steps(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            interval = min(LOOK_SECONDS, self._watch.deadline / 4)
            before = loop.time()
            await asyncio.sleep(interval)
            # When this process itself was delayed, the engine's steps wait unread: count at most
            # twice the interval.
            passed = min(loop.time() - max(before, self._last_step_at), 2 * interval)
            why = self._watch.tick(
                passed, has_work=bool(self._streams), is_stopped=self._ranks.is_stopped
            )
            if why:
                self._reason = (
                    f"{why} although {len(self._streams)} sequences were open, so it was killed as "
                    "stuck"
                )
                self._ranks.kill()
                return


class PreparedProcess:
    """The process of a model that is probably loaded soon; it reads the tokenizer meanwhile."""

    def __init__(self, ranks: RankProcesses) -> None:
        """Use :meth:`begin` instead."""
        self._ranks = ranks

    @classmethod
    async def begin(cls, model_dir: str, *, launch: Launch) -> "PreparedProcess":
        """Makes the process for a model on one device."""
        prepared = cls(await RankProcesses.spawn(1, launch))
        try:
            await prepared._ranks.prepare(model_dir)
        except BaseException:
            await prepared.drop()
            raise
        return prepared

    async def start(self, start: Start, *, on_progress: OnProgress) -> EngineProcess:
        """See :meth:`EngineProcess.start`."""
        return await EngineProcess.start(start, on_progress=on_progress, prepared=self._ranks)

    async def drop(self) -> None:
        """Ends the process."""
        self._ranks.kill()
        await self._ranks.reap()


async def _loaded(
    ranks: RankProcesses, start: Start, on_progress: OnProgress, deadlines: Deadlines
) -> Ready:
    """Waits for rank 0's Ready. Raises :class:`EngineLoadError`."""
    fatal = ""
    progress: dict[int, Loading] = {}
    while True:
        try:
            async with asyncio.timeout(deadlines.load_seconds):
                arrived = await ranks.receive()
        except TimeoutError as error:
            ranks.kill()
            raise EngineLoadError(
                LoadCode.TIMEOUT,
                f"The engine was silent for {deadlines.load_seconds:.0f} s while it loaded "
                f"{start.model_dir}. Check the disk and the device, then load the model again.",
            ) from error
        if not arrived.messages:
            exit_reason = await ranks.reap()
            why = (
                f"{fatal or arrived.fault} ({exit_reason})"
                if fatal or arrived.fault
                else exit_reason
            )
            raise EngineLoadError(
                LoadCode.CRASHED,
                f"The engine ended while it loaded {start.model_dir}: {why}. "
                "Load the model again; if that fails too, report this text.",
            )
        for message in arrived.messages:
            match message:
                case Loading():
                    progress[arrived.rank] = message
                    on_progress(msgspec.structs.replace(_together(progress), pids=ranks.pids))
                case Ready():
                    return message
                case LoadFailed():
                    ranks.kill(spared=arrived.rank)
                    raise EngineLoadError(message.code, message.message)
                case Fatal():
                    fatal = message.message
                case Step() | Refused():
                    pass  # cannot come before Ready
                case _:
                    assert_never(message)


def _together(progress: Mapping[int, Loading]) -> Loading:
    """The joint progress of all ranks: the earliest stage, and the sums of bytes."""
    stages = list(LoadStage)
    return Loading(
        min((one.stage for one in progress.values()), key=stages.index),
        sum(one.done_bytes for one in progress.values()),
        sum(one.total_bytes for one in progress.values()),
    )
