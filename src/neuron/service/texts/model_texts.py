"""What turns the requests of one model into prompts: its text processes.

Small requests have a process that is always there. A large one goes to another, which is started
for it and ended when it has had nothing to do for a while, so that the small ones wait for none.
"""

import asyncio
import functools
import time
from array import array
from collections.abc import Callable

from neuron.engine_process.launch import LaunchText
from neuron.ipc.messages import Ready
from neuron.ipc.text_messages import (
    ListVocabulary,
    LoadText,
    Prepared,
    PrepareText,
    PromptJob,
    RenderedText,
    RenderText,
    TextAnswer,
    TextLoaded,
    TextRefused,
    TokenTexts,
    ToText,
    Working,
)
from neuron.service.texts.lane import Lane
from neuron.service.texts.process import TextProcessDied
from neuron.text.prompt import TOKENIZE_CHARS_PER_SECOND, TOKENIZE_SECONDS, Prompt, Rendering
from neuron.text.tool_calls.call_style import CallStyle
from neuron.text.vocabulary import ModelText, Vocabulary
from protocol import codec
from protocol.errors import ErrorCode, FleetError
from protocol.job import Job

LARGE_BYTES = 256 << 10
"""A request of this size takes up to a few tenths of a second."""
LARGE_IDLE_SECONDS = 60.0
"""How long the process for large requests stays without one."""
_TOKEN_ARRAY = "I"


class ModelTexts:
    """The text processes of one model. Create it with :meth:`open`."""

    def __init__(
        self, usual: Lane, new_lane: Callable[[TextLoaded], Lane], loaded: TextLoaded
    ) -> None:
        """Use :meth:`open` instead."""
        self._usual = usual
        self._new_lane = new_lane
        self._loaded = loaded
        self._large: Lane | None = None
        self._large_used = 0.0
        self._ending: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.text = ModelText(CallStyle(loaded.call_style), loaded.marks)
        """How the model writes."""

    @classmethod
    async def open(cls, launch: LaunchText, folder: str, call_style: str) -> "ModelTexts":
        """Reads the model in *folder*; *call_style* as in ``Prompter.load``. Raises ``FleetError``
        that names the file at fault."""
        load = LoadText(folder, call_style)
        usual = Lane(launch, load)
        try:
            return cls(usual, functools.partial(Lane, launch, load), await usual.open())
        except BaseException:
            await usual.close()
            raise

    @property
    def file_bytes(self) -> int:
        """Size of its tokenizer's file."""
        return self._loaded.file_bytes

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of its processes."""
        return self._usual.pids + (self._large.pids if self._large else ())

    async def prepare(self, job: Job, ready: Ready) -> Prompt:
        """Prepares a job. Raises ``FleetError`` when the template refuses it, when it is too long,
        or when it takes more time or memory than one request may."""
        request = job.request
        asked = PrepareText(
            codec.encode(request),
            PromptJob(
                context_limit=ready.context_limit,
                vocab_size=ready.vocab_size,
                rendered_at=job.rendered_at,
                prompt_hash=job.prompt_hash,
                seed=job.seed,
                choice=job.choice,
            ),
        )
        answer = await self._ask(asked, len(asked.request), request.model)
        assert isinstance(answer, Prepared)
        if request.sampling.logprobs is not None and self.text.vocabulary is None:
            texts = await self._ask(ListVocabulary(), 0, request.model)
            assert isinstance(texts, TokenTexts)
            self.text.vocabulary = Vocabulary(texts.text, texts.ends)
        tokens = array(_TOKEN_ARRAY)
        tokens.frombytes(answer.tokens)
        rendering = Rendering(
            answer.text, tokens.tolist(), answer.opens_thinking, answer.is_raw, answer.begun
        )
        return Prompt(rendering, answer.hash, answer.sample)

    async def render(
        self, data: bytes, model: str, context_limit: int, max_answer_bytes: int
    ) -> bytes:
        """Answers a ``Render`` in JSON by a ``Rendered`` in JSON. Raises what :meth:`prepare`
        does, and ``FleetError`` when the answer is too large."""
        asked = RenderText(data, context_limit, max_answer_bytes)
        answer = await self._ask(asked, len(data), model)
        assert isinstance(answer, RenderedText)
        return answer.answer

    async def close(self) -> None:
        """Ends the processes."""
        if self._ending is not None:
            self._ending.cancel()
        lanes = [self._usual, *([self._large] if self._large else [])]
        self._large = None
        await asyncio.gather(*(lane.close() for lane in lanes), *self._closing)

    async def _ask(self, message: ToText, size: int, model: str) -> TextAnswer:
        work = Working("request", TOKENIZE_SECONDS + size / _READ_BYTES)  # until it says more
        lane = self._lane(size)
        answer = await lane.ask(message, work, lambda death: _blamed(death, model))
        if isinstance(answer, TextRefused):
            raise FleetError.of(answer.error)
        return answer

    def _lane(self, size: int) -> Lane:
        if size <= LARGE_BYTES:
            return self._usual
        if self._large is None:
            self._large = self._new_lane(self._loaded)
        self._large_used = time.monotonic()
        if self._ending is None:
            self._end_large_later()
        return self._large

    def _end_large_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._ending = loop.call_later(LARGE_IDLE_SECONDS, self._end_large)

    def _end_large(self) -> None:
        self._ending = None
        lane = self._large
        if lane is None:
            return
        if lane.is_busy or time.monotonic() - self._large_used < LARGE_IDLE_SECONDS:
            self._end_large_later()
            return
        self._large = None
        closing = asyncio.create_task(lane.close(), name="texts")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


_READ_BYTES = 5 * TOKENIZE_CHARS_PER_SECOND
"""Bytes of a request that are at least read in a second."""


def _blamed(death: TextProcessDied, model: str) -> FleetError:
    """The refusal of a request that used up what it may take."""
    work = death.working
    of = f" for {work.why}" if work.why else ""
    if death.was_too_slow:
        why = f"took more than {work.cpu_seconds:.1f} s of processor time{of}"
    elif death.lacked_memory:
        why = f"needed more memory than one request may take{of}"
    else:
        why = f"ended its process{of} ({death})"
    return FleetError(
        ErrorCode.INVALID_REQUEST,
        f"The {work.what} of {model} {why}, so the request was given up. Send less text or fewer "
        "messages; if it was small, the model's files are at fault.",
    )
