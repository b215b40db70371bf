"""The engine proper: requests in, one step at a time, results out.

Owns the life of sequences from Add to the end of their answer. It uses the scheduler (what to
compute), the runner (computing it) and the answers (text and end). Must not know the channel or the
process around it.
"""

import time

from tokenizers import Tokenizer

from neuron.engine.blocks import BLOCK_TOKENS, BlockPool, Key
from neuron.engine.output.answer import AnswerText
from neuron.engine.request_checks import refusal
from neuron.engine.runner import Runner
from neuron.engine.sampling.sampler import Chosen
from neuron.engine.scheduler import Chunk, Scheduler, SchedulerLimits
from neuron.engine.sequence import Sequence
from neuron.ipc.messages import Add, Output, Progress, Refused, Step
from protocol.errors import ErrorCode

PREFIXES = 32
"""Most prompt prefixes that are reported to the fleet."""
PREFIX_DIGITS = 16


class Engine:
    """Generates for many sequences at the same time."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        pool: BlockPool,
        limits: SchedulerLimits,
        *,
        context_limit: int,
        vocab_size: int,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._pool = pool
        self._scheduler = Scheduler(limits, pool)
        self._context_limit = context_limit
        self._vocab_size = vocab_size
        self._answers: dict[int, AnswerText] = {}
        # Answers that were complete when they were added; reported with the next step.
        self._over: dict[int, Output] = {}
        self._steps = 0
        self._roots: list[Key] = []

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._over)

    def add(self, add: Add) -> Refused | None:
        """Queues a request. Returns the refusal if it cannot run or the queue is full."""
        bad = refusal(add, context_limit=self._context_limit, vocab_size=self._vocab_size)
        if bad is not None:
            return bad
        if add.id in self._answers or add.id in self._over:
            return Refused(
                add.id, ErrorCode.INVALID_REQUEST, f"Id {add.id} is already in use. Use a new one."
            )
        if self._scheduler.is_full:
            return self._overloaded(add.id)
        sequence = Sequence.from_add(add, self._context_limit, time.monotonic())
        room = sequence.limit - sequence.prompt_tokens
        answer = AnswerText(self._tokenizer, add.prompt, add.sample, room)
        over = _replay(answer, add)
        if over is not None:
            self._over[add.id] = over
            return None
        self._answers[add.id] = answer
        self._scheduler.add(sequence)
        return None

    def abort(self, sequence_id: int) -> None:
        """Drops a sequence; the next step no longer includes it."""
        self._over.pop(sequence_id, None)
        self._answers.pop(sequence_id, None)
        self._scheduler.remove(sequence_id)
        self._runner.forget(sequence_id)

    def expire(self) -> list[Refused]:
        """Drops the sequences whose deadline has passed, and returns their refusals."""
        late = self._scheduler.overdue(time.monotonic())
        for sequence in late:
            self.abort(sequence.id)
        return [
            Refused(
                sequence.id,
                ErrorCode.TIMEOUT,
                f"The deadline passed after {sequence.generated} tokens of the answer. Allow more "
                "time, or ask for fewer tokens.",
            )
            for sequence in late
        ]

    def step(self) -> Step:
        """Computes one step. Raises :class:`~neuron.engine.runner.EngineFault`."""
        started = time.perf_counter()
        outputs, self._over = list(self._over.values()), {}
        progress: list[Progress] = []
        plan = self._scheduler.plan()
        if plan.chunks:
            chosen = iter(self._runner.run(plan))
            self._scheduler.commit(plan)
            for chunk in plan.chunks:
                if chunk.samples:
                    outputs.append(self._advance(chunk, next(chosen)))
                else:
                    sequence = chunk.sequence
                    progress.append(Progress(sequence.id, sequence.computed, sequence.total))
        self._steps += 1
        return Step(
            number=self._steps,
            tokens=plan.tokens,
            seconds=time.perf_counter() - started,
            outputs=outputs,
            progress=progress,
            running=self._scheduler.running,
            queued=self._scheduler.queued,
            kv_tokens_free=self._pool.free_blocks * BLOCK_TOKENS,
            kv_tokens_cached=self._pool.cached * BLOCK_TOKENS,
            preemptions=self._scheduler.preemptions,
            prefixes=self._new_prefixes(),
        )

    def _new_prefixes(self) -> tuple[str, ...] | None:
        """The prompt prefixes that can be found now, or None if they have not changed."""
        roots = self._pool.prefix_heads(PREFIXES)
        if roots == self._roots:
            return None
        self._roots = roots
        return tuple(root.hex()[:PREFIX_DIGITS] for root in roots)

    def _advance(self, chunk: Chunk, chosen: Chosen) -> Output:
        sequence = chunk.sequence
        index = sequence.generated
        sequence.tokens.append(chosen.token)
        answer = self._answers[sequence.id]
        piece = answer.push(chosen.token)
        prompt = self._runner.take_prompt_logprobs(sequence.id) if index == 0 else None
        if piece.finish is not None:
            self.abort(sequence.id)
        return Output(
            sequence.id,
            index,
            [chosen.token],
            piece.text,
            piece.finish,
            piece.stop_text,
            [] if chosen.logprobs is None else [chosen.logprobs],
            prompt,
            sequence.cached if index == 0 else 0,
            answer.take_replayed(),
        )

    def _overloaded(self, sequence_id: int) -> Refused:
        limits = self._scheduler.limits
        return Refused(
            sequence_id,
            ErrorCode.OVERLOADED,
            f"The model's queue is full: {limits.max_running} sequences run and "
            f"{limits.max_queued} wait. Try again shortly.",
        )


def _replay(answer: AnswerText, add: Add) -> Output | None:
    """Replays an earlier attempt's tokens into *answer*; returns an Output if they ended it."""
    end = answer.replay(add.generated)
    if end is None:
        return None
    count = len(add.generated)
    replayed = answer.take_replayed()
    return Output(add.id, count, [], "", end.finish, end.stop_text, replayed=replayed)
