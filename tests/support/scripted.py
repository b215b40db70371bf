"""A scripted engine for the real neuron service: answers are known, time is in the test's hands.

It keeps the engine's contract (slots, queue, one event per sequence and step, abort within a
step), so what is tested around it is the real thing.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from neuron.engine.output.stop_scanner import StopScanner
from neuron.engine_process.client import EngineLoadError
from neuron.engine_process.sequence_stream import EngineDied, SequenceStream
from neuron.ipc.messages import (
    Add,
    EngineStats,
    Loading,
    LoadStage,
    Output,
    Progress,
    Ready,
    Refused,
    Start,
)
from protocol.generate import FinishReason
from tests.support.words import token_of

log = logging.getLogger("scripted")

Answer = Callable[[Add], Sequence[str]]
"""The texts of an answer's tokens, one each."""


class Script:
    """How the engines of one fleet behave; may be changed while they run."""

    def __init__(
        self,
        answer: Answer = lambda add: ("Hello", " ", "world", "!"),
        *,
        slots: int = 4,
        step_seconds: float = 0.002,
        prefill_steps: int = 1,
        load_seconds: float = 0.0,
        context: int = 2048,
        row_seconds: float = 0.0,
    ) -> None:
        """A step takes *step_seconds*, and *row_seconds* more for every sequence in it."""
        self.answer = answer
        self.slots = slots
        self.step_seconds = step_seconds
        self.row_seconds = row_seconds
        self.prefill_steps = prefill_steps
        self.load_seconds = load_seconds
        self.context = context
        self.load_error: EngineLoadError | None = None
        self.kills: Callable[[Add], bool] = lambda add: False
        """Requests with which the engine dies as soon as it reads them."""
        self.engines: list[ScriptedEngine] = []

    async def start(
        self, start: Start, *, on_progress: Callable[[Loading], None]
    ) -> "ScriptedEngine":
        """Takes the place of ``EngineProcess.start``."""
        on_progress(Loading(LoadStage.READING, 1, 2))
        await asyncio.sleep(self.load_seconds)
        if self.load_error:
            raise self.load_error
        engine = ScriptedEngine(self)
        self.engines.append(engine)
        return engine


class _Sequence:
    def __init__(self, add: Add, texts: Sequence[str]) -> None:
        self.add = add
        self.texts = list(texts)[: add.sample.max_tokens]
        self.is_cut = len(texts) > len(self.texts)
        self.stream = SequenceStream(add.id)
        self.scanner = StopScanner(add.sample.stop)
        self.prefilled = 0
        self.sent = len(add.generated)
        self.replayed = self.texts[: self.sent]
        assert add.generated == [token_of(text) for text in self.replayed], "other tokens came"


class ScriptedEngine:
    """One engine, in the test's own process."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.ready = Ready(
            architecture="Scripted",
            dtype="float32",
            context_limit=script.context,
            max_running=script.slots,
            weight_bytes=1,
            kv_cache_bytes=1,
            kv_cache_tokens=1 << 20,
            kv_cache_why="scripted",
            vocab_size=100_000,
            load_seconds=script.load_seconds,
            exact=True,
            numerics="scripted",
        )
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.steps_of: Counter[int] = Counter()
        """How many steps each sequence took part in."""
        self.rows: list[int] = []
        self.paused = False
        self._steps = 0
        self._step_at = time.monotonic()
        self._step_seconds = 0.0
        self._sequences: dict[int, _Sequence] = {}
        self._task = asyncio.create_task(self._run(), name="scripted engine")

    @property
    def pids(self) -> tuple[int, ...]:
        return ()  # it has no process

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            open=len(self._sequences),
            running=self.rows[-1] if self.rows else 0,
            kv_tokens_free=1,
            step_number=self._steps,
            step_seconds=self._step_seconds,
            step_age_seconds=time.monotonic() - self._step_at if self._sequences else 0.0,
        )

    @property
    def open(self) -> int:
        """Sequences that are running or queued."""
        return len(self._sequences)

    async def add(self, add: Add) -> AsyncIterator[Output | Progress | Refused]:
        if self.died.done():
            raise EngineDied(self.died.result())
        sequence = _Sequence(add, self._script.answer(add))
        self._sequences[add.id] = sequence
        return sequence.stream

    def abort(self, sequence_id: int) -> None:
        sequence = self._sequences.pop(sequence_id, None)
        if sequence:
            sequence.stream.end()

    async def stop(self, grace_seconds: float = 0) -> None:
        self._task.cancel()
        self._die("it was stopped")

    def crash(self, reason: str = "killed by signal 9") -> None:
        """As a real engine process that is gone."""
        self._task.cancel()
        self._die(reason)

    def _die(self, reason: str) -> None:
        if not self.died.done():
            self.died.set_result(reason)
        for sequence in self._sequences.values():
            sequence.stream.end(EngineDied(reason))
        self._sequences.clear()

    async def _run(self) -> None:
        while True:
            rows = min(len(self._sequences), self._script.slots)
            await asyncio.sleep(self._script.step_seconds + rows * self._script.row_seconds)
            if self.paused:
                continue
            running = list(itertools.islice(self._sequences.values(), self._script.slots))
            now = time.monotonic()
            if running:
                self._steps += 1
                self._step_seconds = now - self._step_at
                self.rows.append(len(running))
            self._step_at = now
            try:
                for sequence in running:
                    self._step(sequence)
            except Exception:
                log.exception("the scripted engine itself is wrong")
                self.crash("a bug in the script")

    def _step(self, sequence: _Sequence) -> None:
        if self.died.done():
            return
        self.steps_of[sequence.add.id] += 1
        if self._script.kills(sequence.add):
            self.crash()
            return
        total = len(sequence.add.prompt)
        if sequence.prefilled < self._script.prefill_steps - 1:
            sequence.prefilled += 1
            done = total * sequence.prefilled // self._script.prefill_steps
            sequence.stream.push(Progress(sequence.add.id, done, total))
            return
        index = sequence.sent
        new = sequence.texts[index : index + 1]
        sequence.sent += len(new)
        text, stop = sequence.scanner.push("".join(new))
        is_last = sequence.sent >= len(sequence.texts) or stop is not None
        reason = FinishReason.LENGTH if sequence.is_cut and stop is None else FinishReason.STOP
        if is_last and stop is None:
            text += sequence.scanner.flush()
        output = Output(
            sequence.add.id,
            index,
            [token_of(text) for text in new],
            text,
            finish=reason if is_last else None,
            stop_text=stop or "",
            replayed=sequence.replayed,
        )
        sequence.replayed = []
        if is_last:
            del self._sequences[sequence.add.id]
        sequence.stream.push(output)
