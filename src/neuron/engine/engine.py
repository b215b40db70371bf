"""The engine proper: requests in, one step at a time, what happened out.

Owns the sequences' life from Add to the end of their answer, by way of the scheduler (what to
compute), the runner (computing it) and the answers (text and end). Must not know the channel or
the process around it.
"""

import time

from tokenizers import Tokenizer

from neuron.engine.admission import refusal
from neuron.engine.answer import Answer, Piece
from neuron.engine.blocks import BLOCK_TOKENS, BlockPool
from neuron.engine.messages import Add, Output, Progress, Refused, Step
from neuron.engine.runner import Runner
from neuron.engine.scheduler import Chunk, Limits, Scheduler
from neuron.engine.sequence import Sequence
from protocol.errors import ErrorCode


class Engine:
    """Generates for many sequences at once."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        pool: BlockPool,
        limits: Limits,
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
        self._answers: dict[int, Answer] = {}
        self._over: dict[int, Output] = {}  # complete on arrival: reported with the next step
        self._steps = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._over)

    def add(self, add: Add) -> Refused | None:
        """Queues a request; returns why not, if it cannot run or the queue is full."""
        bad = refusal(add, context_limit=self._context_limit, vocab_size=self._vocab_size)
        if bad is not None:
            return bad
        if add.id in self._answers or add.id in self._over:
            return Refused(add.id, ErrorCode.INVALID_REQUEST, f"Id {add.id} is in use already.")
        if self._scheduler.is_full:
            return self._overloaded(add.id)
        sequence = Sequence.from_add(add, self._context_limit)
        room = sequence.limit - sequence.prompt_tokens
        answer = Answer(self._tokenizer, add.prompt, add.sample, room)
        over = _replay(answer, add)
        if over is not None:
            self._over[add.id] = over
            return None
        self._answers[add.id] = answer
        self._scheduler.add(sequence)
        return None

    def abort(self, sequence_id: int) -> None:
        """Forgets a sequence: the next step does not know it any more."""
        self._over.pop(sequence_id, None)
        self._answers.pop(sequence_id, None)
        self._scheduler.remove(sequence_id)

    def step(self) -> Step:
        """Computes one step. Raises :class:`~neuron.engine.runner.EngineFault`."""
        started = time.perf_counter()
        outputs, self._over = list(self._over.values()), {}
        progress: list[Progress] = []
        plan = self._scheduler.plan()
        if plan.chunks:
            tokens = iter(self._runner.run(plan))
            self._scheduler.commit(plan)
            for chunk in plan.chunks:
                if chunk.samples:
                    outputs.append(self._advance(chunk, next(tokens)))
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
            kv_tokens_free=self._pool.free * BLOCK_TOKENS,
        )

    def _advance(self, chunk: Chunk, token: int) -> Output:
        sequence = chunk.sequence
        index = sequence.generated
        sequence.tokens.append(token)
        piece = self._answers[sequence.id].push(token)
        if piece.finish is not None:
            self.abort(sequence.id)
        return _output(sequence.id, index, [token], piece)

    def _overloaded(self, sequence_id: int) -> Refused:
        limits = self._scheduler.limits
        return Refused(
            sequence_id,
            ErrorCode.OVERLOADED,
            f"The model's queue is full: {limits.max_running} sequences run and "
            f"{limits.max_queued} wait. Try again shortly.",
        )


def _replay(answer: Answer, add: Add) -> Output | None:
    """Lets *answer* catch up with an earlier attempt; an Output if that one had ended it."""
    for token in add.generated:
        piece = answer.push(token)
        if piece.finish is not None:
            # Its text was the earlier attempt's to report, except what it still held back.
            return _output(add.id, len(add.generated), [], piece)
    return None


def _output(sequence_id: int, index: int, tokens: list[int], piece: Piece) -> Output:
    return Output(sequence_id, index, tokens, piece.text, piece.finish, piece.stop_text)
