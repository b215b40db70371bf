"""Frames of one job on a neuron: their order, and what they count."""

from pathlib import Path

import msgspec

from neuron import demo_model
from neuron.ipc.messages import Output, Progress, SamplingParams
from neuron.service.identity import Identity
from neuron.service.jobs.running_job import RunningJob
from neuron.text.prompt import Prompt, Rendering
from neuron.text.prompter import Prompter
from protocol import codec, frames
from protocol.bus import BusMessage
from protocol.frames import AnyFrame, Phase
from protocol.generate import FinishReason, GenerateRequest, Message, Role, Tool
from protocol.job import Job
from tests.support.nats import NatsServer, connected
from tests.support.waiting import until

JOB = Job(
    id="j",
    gateway="gw",
    request=GenerateRequest("m", (Message(Role.USER, "Hi"),), (Tool("f"),)),
    seed=1,
    rendered_at=0.0,
)
PROMPT = Prompt(Rendering("Hi", [1, 2, 3]), "h", SamplingParams(max_tokens=50))
TEXT = Prompter.load(Path(next(iter(demo_model.__path__)))).model_text()


async def test_frames_come_in_order_and_count_every_token(nats: NatsServer) -> None:
    seen: list[AnyFrame] = []

    def note(message: BusMessage) -> None:
        seen.append(codec.read_frame(message.data))

    async with connected(nats.url) as bus:
        await bus.subscribe("cortex.reply.gw.j", note)
        running = RunningJob(Identity(bus, "n", "i"), JOB, PROMPT, TEXT)
        await running.keep_alive(0.0)
        await running.accept("ack")
        await running.on_event(Progress(7, 2, 3), 0.01)
        await running.keep_alive(0.1)
        await running.on_event(Output(7, 0, [10, 11], "<think>\nhm"), 0.01)
        await running.on_event(Output(7, 2, [12], "</think>x"), 0.01)
        await running.on_event(Output(7, 3, [13], '<tool_call>{"name":"f"}</tool_call>'), 0.01)
        await running.on_event(Output(7, 4, [14], "", FinishReason.STOP), 0.01)
        await until(lambda: isinstance(seen[-1], frames.Finished) if seen else False)
    kinds = [type(frame) for frame in seen]
    assert kinds[:2] == [frames.Accepted, frames.KeepAlive], "nothing comes before Accepted"
    keep_alive = seen[1]
    assert isinstance(keep_alive, frames.KeepAlive)
    assert (keep_alive.phase, keep_alive.done, keep_alive.total) == (Phase.PREFILL, 2, 3)
    deltas = [frame for frame in seen if isinstance(frame, frames.Delta)]
    assert [(d.index, len(d.tokens)) for d in deltas] == [(0, 2), (2, 1), (3, 1), (4, 1)]
    finished = seen[-1]
    assert isinstance(finished, frames.Finished)
    assert finished.reason is FinishReason.TOOL_CALLS
    assert finished.next_index == 5
    usage = finished.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens) == (3, 5, 2)


async def test_frames_can_be_had_again_from_any_piece_on(nats: NatsServer) -> None:
    seen: list[AnyFrame] = []
    async with connected(nats.url) as bus:
        await bus.subscribe("cortex.reply.gw.j", lambda m: seen.append(codec.read_frame(m.data)))
        running = RunningJob(Identity(bus, "n", "i"), JOB, PROMPT, TEXT)
        await running.accept("ack")
        for index in range(4):
            finish = FinishReason.STOP if index == 3 else None
            await running.on_event(Output(7, index, [index], f"<{index}>", finish), 0.01)
        await until(lambda: isinstance(seen[-1], frames.Finished) if seen else False)
        first = list(seen)
        seen.clear()
        await running.resume(2, 0.0)
        await until(lambda: isinstance(seen[-1], frames.Finished) if seen else False)
        assert seen == first[-3:], "two pieces and the end"
        seen.clear()
        await running.resume(0, 0.0)
        await until(lambda: isinstance(seen[-1], frames.Finished) if seen else False)
    assert seen[1:] == first[1:]
    assert isinstance(seen[0], frames.Accepted)


async def test_another_attempt_goes_on_where_the_first_ended(nats: NatsServer) -> None:
    """Thinking, text and counts come out as if one attempt had done it all."""
    texts = ["<think>", "\nhm", "</think>", "\n\nHi", " there", "!"]
    whole = await _parts_of(nats, [Output(7, i, [i], t) for i, t in enumerate(texts)], ())
    for cut in range(1, len(texts)):
        rest = [Output(7, i, [i], texts[i]) for i in range(cut, len(texts))]
        rest[0].replayed.extend(texts[:cut])
        assert await _parts_of(nats, rest, tuple(range(cut))) == whole[cut:], cut


async def _parts_of(
    nats: NatsServer, outputs: list[Output], so_far: tuple[int, ...]
) -> list[tuple[int, tuple[frames.AnswerPart, ...]]]:
    """The index and the parts of every piece, then the reasoning tokens as an index."""
    seen: list[AnyFrame] = []
    last = msgspec.structs.replace(outputs[-1], finish=FinishReason.STOP)
    job = msgspec.structs.replace(JOB, tokens_so_far=so_far)
    async with connected(nats.url) as bus:
        await bus.subscribe("cortex.reply.gw.j", lambda m: seen.append(codec.read_frame(m.data)))
        running = RunningJob(Identity(bus, "n", "i"), job, PROMPT, TEXT)
        await running.accept("ack")
        for output in (*outputs[:-1], last):
            await running.on_event(output, 0.01)
        await until(lambda: isinstance(seen[-1], frames.Finished) if seen else False)
    finished = seen[-1]
    assert isinstance(finished, frames.Finished)
    deltas = [(f.index, f.parts) for f in seen if isinstance(f, frames.Delta)]
    return [*deltas, (finished.usage.reasoning_tokens, ())]
