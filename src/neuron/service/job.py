"""One job on a neuron: from the prompt's tokens to the frames of its answer.

It turns what the engine says about one sequence into frames for the gateway and keeps the counts
for the final one. It decides nothing about other jobs.
"""

import time

from neuron.engine.messages import Output, Progress, Refused
from neuron.service.prompt import Prompt
from neuron.text.splitter import OutputSplitter
from protocol import codec, frames, subjects
from protocol.bus import Bus
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.frames import Phase
from protocol.generate import FinishReason, Timings, Usage
from protocol.job import Job


class Identity:
    """Who sends the frames."""

    def __init__(self, bus: Bus, node: str, instance: str) -> None:
        self.bus = bus
        self.node = node
        self.instance = instance

    async def send(self, job: Job, frame: frames.AnyFrame) -> None:
        """Publishes a frame to the job's gateway."""
        await self.bus.publish(subjects.reply(job.gateway, job.id), codec.encode(frame))

    async def refuse(self, job: Job, error: WireError, *, ack: str, retryable: bool) -> None:
        """Ends a job that has not begun."""
        await self.send(
            job,
            frames.Failed(
                attempt=job.attempt,
                instance=self.instance,
                node=self.node,
                error=error,
                retryable=retryable,
                ack=ack,
            ),
        )


class RunningJob:
    """A job that has been accepted, until its last frame."""

    def __init__(self, identity: Identity, job: Job, prompt: Prompt, sequence_id: int) -> None:
        self.job = job
        self.sequence_id = sequence_id
        self._identity = identity
        self._prompt = prompt
        self._splitter = OutputSplitter(
            starts_in_thinking=prompt.opens_thinking,
            tools_offered=bool(job.request.tools),
            new_call_id=_CallIds(job.id),
        )
        self._accepted = False
        self._phase = Phase.QUEUED
        self._done = 0
        self._next_index = 0
        self._reasoning_tokens = 0
        self._cached_tokens = 0
        self._arrived = time.monotonic()
        self._started = 0.0
        self._first_token = 0.0

    async def accept(self, ack: str) -> None:
        """Tells the gateway; also again, when the hand-over was delivered a second time."""
        await self._send(
            frames.Accepted(
                attempt=self.job.attempt,
                instance=self._identity.instance,
                node=self._identity.node,
                prompt_tokens=len(self._prompt.tokens),
                prompt_hash=self._prompt.hash,
                max_tokens=self._prompt.sample.max_tokens,
                ack=ack,
            )
        )
        self._accepted = True

    async def keep_alive(self, step_age_seconds: float) -> None:
        """Sent twice a second, and on request; never before Accepted, which must come first."""
        if not self._accepted:
            return
        await self._send(
            frames.KeepAlive(
                attempt=self.job.attempt,
                instance=self._identity.instance,
                next_index=self._next_index,
                phase=self._phase,
                done=self._done,
                total=len(self._prompt.tokens),
                step_age_seconds=round(step_age_seconds, 3),
            )
        )

    async def on_event(self, event: Output | Progress | Refused, step_seconds: float) -> None:
        """The engine did something for this job, in a step that took so long."""
        if not self._started:
            self._started = max(self._arrived, time.monotonic() - step_seconds)
        match event:
            case Progress():
                self._phase = Phase.PREFILL
                self._done = event.computed
            case Output():
                await self._on_output(event)
            case Refused():
                await self.fail(
                    FleetError(ErrorCode(event.code), event.message).error,
                    retryable=event.code == ErrorCode.OVERLOADED,
                )

    async def fail(self, error: WireError, *, retryable: bool) -> None:
        """The last frame of a job that cannot be finished."""
        await self._send(
            frames.Failed(
                attempt=self.job.attempt,
                instance=self._identity.instance,
                node=self._identity.node,
                error=error,
                retryable=retryable,
            )
        )

    async def _on_output(self, output: Output) -> None:
        if self._phase is not Phase.DECODE:
            self._phase = Phase.DECODE
            self._done = len(self._prompt.tokens)
            self._first_token = time.monotonic()
            self._cached_tokens = output.cached
        parts = self._splitter.feed(output.text)
        if self._splitter.in_reasoning:
            self._reasoning_tokens += len(output.tokens)
        if output.finish is not None:
            parts += self._splitter.finish()
        if output.tokens or parts:
            await self._send(
                frames.Delta(
                    attempt=self.job.attempt,
                    instance=self._identity.instance,
                    index=output.index,
                    tokens=tuple(output.tokens),
                    choice=self.job.choice,
                    parts=parts,
                )
            )
        self._next_index = output.index + len(output.tokens)
        if output.finish is not None:
            await self._finish(output)

    async def _finish(self, output: Output) -> None:
        reason = output.finish
        assert reason is not None
        if reason is FinishReason.STOP and self._splitter.calls:
            reason = FinishReason.TOOL_CALLS
        now = time.monotonic()
        await self._send(
            frames.Finished(
                attempt=self.job.attempt,
                instance=self._identity.instance,
                next_index=self._next_index,
                reason=reason,
                usage=Usage(
                    prompt_tokens=len(self._prompt.tokens),
                    completion_tokens=self._next_index,
                    cached_tokens=self._cached_tokens,
                    reasoning_tokens=self._reasoning_tokens,
                ),
                timings=Timings(
                    queue_seconds=round(self._started - self._arrived, 6),
                    prefill_seconds=round(self._first_token - self._started, 6),
                    decode_seconds=round(now - self._first_token, 6),
                ),
                stop_text=output.stop_text,
            )
        )

    async def _send(self, frame: frames.AnyFrame) -> None:
        await self._identity.send(self.job, frame)


class _CallIds:
    """Ids of tool calls: derived from the job, so that a repeated attempt gives the same ones."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"call_{self._job_id[:20]}{self._count:04x}"
