"""One job on a neuron: from the prompt's tokens to the frames of its answer.

Turns the engine's output for one sequence into frames for the gateway, keeps them so that lost ones
can be sent again, and counts what the last frame reports. Decides nothing about other jobs.
"""

import asyncio
import time
from collections.abc import Iterator

import msgspec

from neuron.ipc.messages import Output, Progress, Refused
from neuron.service.identity import Identity
from neuron.service.jobs.answer_parts import AnswerParts
from neuron.service.jobs.transcript import Transcript, TranscriptEntry
from neuron.text.prompt import Prompt
from neuron.text.vocabulary import ModelText
from protocol import frames
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.frames import AnswerPart, Phase
from protocol.generate import FinishReason, Timings, Usage
from protocol.job import Job

AT_ONCE = 256
"""Tokens of an earlier attempt that are replayed, and frames that are sent again, before others may
run. An answer has up to a hundred thousand."""


class RunningJob:
    """An accepted job, with its answer for as long as it is kept."""

    def __init__(
        self,
        identity: Identity,
        job: Job,
        prompt: Prompt,
        text: ModelText,
        *,
        revision: str = "",
        numerics: str = "",
    ) -> None:
        self.job = job
        self.prompt = prompt
        self.is_parked = False
        """Whether its gateway is gone, so that the engine does not work on it."""
        self._identity = identity
        self._revision = revision
        self._numerics = numerics
        self._transcript = Transcript()
        self._parts = AnswerParts(job.request, prompt, text, _CallIds(job.id))
        self._accepted = False
        self._growing = asyncio.Lock()
        """Held while tokens are added to the answer."""
        self._resent: int | None = None
        """Where sending again stands. Until it has caught up, all pieces are left to it, so that
        none overtakes another."""
        self._last: frames.Finished | frames.Failed | None = None
        self._phase = Phase.QUEUED
        self._done = 0
        self._reasoning_tokens = 0
        self._cached_tokens = 0
        self._arrived = time.monotonic()
        self._started = 0.0
        self._first_token = 0.0

    @property
    def is_over(self) -> bool:
        """Whether its last frame has been sent."""
        return self._last is not None

    def hold(self) -> None:
        """Marks it as waiting outside the engine."""
        self._phase = Phase.HELD

    async def settle(self) -> None:
        """Waits until the answer stands still; who goes on with it must begin at its end.

        An earlier task may have been cancelled and yet have to complete what it began.
        """
        async with self._growing:
            pass

    def let_in(self) -> None:
        """Marks it as handed to the engine."""
        self._phase = Phase.QUEUED

    @property
    def has_new_token(self) -> bool:
        """Whether this attempt has produced a token."""
        return self._phase is Phase.DECODE

    @property
    def next_index(self) -> int:
        """Number of answer tokens so far."""
        return max(self._transcript.next_index, len(self.job.tokens_so_far))

    @property
    def tokens(self) -> tuple[int, ...]:
        """The answer tokens so far."""
        if self._transcript.next_index < len(self.job.tokens_so_far):
            return self.job.tokens_so_far  # they have not been replayed, or not all of them
        return self._transcript.tokens()

    async def accept(self, ack: str = "") -> None:
        """Sends Accepted to the gateway, again if the job was delivered twice."""
        await self._send(
            frames.Accepted(
                attempt=self.job.attempt,
                instance=self._identity.instance,
                node=self._identity.node,
                prompt_tokens=len(self.prompt.tokens),
                prompt_hash=self.prompt.hash,
                revision=self._revision,
                numerics=self._numerics,
                max_tokens=self.prompt.sample.max_tokens,
                ack=ack,
            )
        )
        self._accepted = True

    async def keep_alive(self, step_age_seconds: float) -> None:
        """Sends KeepAlive, twice a second and on request; never before Accepted.

        While pieces are sent again it would only make the gateway ask for them once more.
        """
        if not self._accepted or self._resent is not None:
            return
        await self._send(
            frames.KeepAlive(
                attempt=self.job.attempt,
                instance=self._identity.instance,
                next_index=self.next_index,
                phase=self._phase,
                done=self._done,
                total=len(self.prompt.tokens),
                step_age_seconds=round(step_age_seconds, 3),
            )
        )

    async def resume(self, index: int, step_age_seconds: float) -> None:
        """Sends again what its gateway may have missed, from token *index* on.

        Asked for again meanwhile, it goes on from the new index.
        """
        if not self._accepted:
            return
        if index <= len(self.job.tokens_so_far):
            await self.accept()
        is_sending, self._resent = self._resent is not None, index
        if is_sending:
            return
        try:
            await self._send_again()
        except BusOverflow as error:
            self._failed(_too_large(error), retryable=False)
        finally:
            self._resent = None
        if self._last is None:
            await self.keep_alive(step_age_seconds)
        else:
            await self._send(self._last)

    async def _send_again(self) -> None:
        count = 0
        while self._resent is not None and (piece := self._transcript.at(self._resent)):
            self._resent = piece.start + len(piece.tokens)
            await self._send(self._delta(piece))
            count += 1
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)

    def hand_over(self, gateway: str, attempt: int) -> None:
        """Gives the job to another gateway; its tokens all belong to earlier attempts."""
        self.job = msgspec.structs.replace(self.job, gateway=gateway, attempt=attempt)
        if self._last is not None:
            self._last = msgspec.structs.replace(self._last, attempt=attempt)

    async def on_event(self, event: Output | Progress | Refused, step_seconds: float) -> None:
        """Handles the engine's output for this job, from a step of *step_seconds*."""
        if not self._started:
            self._started = max(self._arrived, time.monotonic() - step_seconds)
        match event:
            case Progress():
                self._phase = Phase.PREFILL
                self._done = min(event.computed, len(self.prompt.tokens))
            case Output():
                try:
                    await self._on_output(event)
                except BusOverflow as error:  # elsewhere it would be as large
                    await self.fail(_too_large(error), retryable=False)
            case Refused():
                await self.fail(
                    FleetError(ErrorCode(event.code), event.message).error,
                    retryable=event.code == ErrorCode.OVERLOADED,
                )

    async def fail(self, error: WireError, *, retryable: bool) -> None:
        """Sends the last frame of a job that cannot be finished here."""
        await self._send(self._failed(error, retryable=retryable))

    def give_up(self) -> None:
        """Ends a parked job whose model was unloaded meanwhile.

        A gateway that asks for it gets the answer so far and continues it elsewhere.
        """
        self.is_parked = False
        error = WireError(
            ErrorCode.STREAM_LOST,
            f"{self.job.request.model} was unloaded from node {self._identity.node}.",
            retry_after_seconds=1,
        )
        self._failed(error, retryable=True)

    def _failed(self, error: WireError, *, retryable: bool) -> frames.Failed:
        self._last = frames.Failed(
            attempt=self.job.attempt,
            instance=self._identity.instance,
            node=self._identity.node,
            error=error,
            retryable=retryable,
        )
        return self._last

    async def _on_output(self, output: Output) -> None:
        if self._phase is not Phase.DECODE:
            self._phase = Phase.DECODE
            self._done = len(self.prompt.tokens)
            self._first_token = self._first_token or time.monotonic()
            self._cached_tokens = self._cached_tokens or output.cached
        finish, stop_text = output.finish, output.stop_text
        async with self._growing:
            await self._replay(output)
            piece = await self._grow(output) if output.tokens and not self.is_over else None
        if self.is_over:
            return  # it was ended during a pause
        if piece is not None:
            if self._parts.is_enough and finish is None:
                finish = FinishReason.STOP
                piece = self._transcript.extend_last(self._parts.finish())
            await self._send_piece(piece)
        if finish is not None:
            await self._finish(finish, stop_text)

    async def _replay(self, output: Output) -> None:
        """Replays an earlier attempt into the transcript; its frames were sent back then.

        If cancelled, it goes on with the next token when the job does.
        """
        tokens = self.job.tokens_so_far
        while (index := self._transcript.next_index) < len(output.replayed):
            is_last = output.finish is not None and index == len(output.replayed) - 1
            again = Output(
                output.id,
                index,
                [tokens[index]],
                output.replayed[index],
                finish=output.finish if is_last and not output.tokens else None,
                stop_text=output.stop_text if is_last and not output.tokens else "",
                prompt_logprobs=output.prompt_logprobs,
            )
            await self._grow(again)
            if (index + 1) % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _grow(self, output: Output) -> TranscriptEntry:
        """Adds new tokens to the transcript.

        Completes that even when it is cancelled, as text that was read cannot be read again.
        """
        parts: tuple[AnswerPart, ...] = ()
        is_cancelled = False
        for more in self._new_parts(output):
            if more is None:
                is_cancelled = await _pause() or is_cancelled
            else:
                parts += more
        piece = self._transcript.add(output.tokens, parts)
        if is_cancelled:
            raise asyncio.CancelledError
        return piece

    def _new_parts(self, output: Output) -> Iterator[tuple[AnswerPart, ...] | None]:
        """Yields the parts that new tokens add, and None wherever others should run."""
        if self._transcript.next_index == 0:
            yield from self._parts.echo(output.prompt_logprobs)
        if not self._is_scored_only:
            yield from self._parts.feed(
                output.tokens, output.text, output.logprobs, output.stop_text
            )
        if self._parts.in_reasoning:
            self._reasoning_tokens += len(output.tokens)
        if output.finish is not None:
            yield self._parts.finish()

    @property
    def _is_scored_only(self) -> bool:
        """Whether no tokens were requested: the engine still makes one, which is not sent."""
        return self.job.request.sampling.max_tokens == 0

    async def _send_piece(self, piece: TranscriptEntry) -> None:
        if self._resent is None:
            await self._send(self._delta(piece))

    def _delta(self, piece: TranscriptEntry) -> frames.Delta:
        return frames.Delta(
            attempt=self.job.attempt,
            instance=self._identity.instance,
            index=piece.start,
            tokens=piece.tokens,
            choice=self.job.choice,
            parts=piece.parts,
            cached_tokens=0 if piece.start else self._cached_tokens,
        )

    async def _finish(self, reason: FinishReason, stop_text: str) -> None:
        if reason is FinishReason.STOP and self._parts.calls:
            reason = FinishReason.TOOL_CALLS
        now = time.monotonic()
        self._last = frames.Finished(
            attempt=self.job.attempt,
            instance=self._identity.instance,
            next_index=self._transcript.next_index,
            reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt.tokens),
                completion_tokens=0 if self._is_scored_only else self._transcript.next_index,
                cached_tokens=self._cached_tokens,
                reasoning_tokens=self._reasoning_tokens,
            ),
            timings=Timings(
                queue_seconds=round(self._started - self._arrived, 6),
                prefill_seconds=round(self._first_token - self._started, 6),
                decode_seconds=round(now - self._first_token, 6),
            ),
            stop_text=stop_text,
        )
        if self._resent is None:  # else it follows the pieces before it
            await self._send(self._last)

    async def _send(self, frame: frames.AnyFrame) -> None:
        await self._identity.send(self.job, frame)


class _CallIds:
    """Ids of tool calls, derived from the job so that a repeated attempt gives the same ids."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"call_{self._job_id[:20]}{self._count:04x}"


async def _pause() -> bool:
    """Lets others run; returns whether the task was cancelled meanwhile."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return True
    return False


def _too_large(error: BusOverflow) -> WireError:
    return WireError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"A part of the answer has {error.size:,} bytes, but a message on the bus may have at most "
        f"{error.limit:,}. Ask for fewer alternatives (logprobs), or for a shorter answer.",
    )
