"""Frames arrive whole and in order, whatever the pieces, and bad ones are noticed."""

import asyncio
import socket

import msgspec
import pytest

from neuron.ipc import channel as module
from neuron.ipc.channel import ChannelClosed, EngineEnd, FrameError, FrameReader, ServiceEnd
from neuron.ipc.messages import Abort, Add, Fatal, SamplingParams, ToEngine

ADD = Add(7, list(range(1000)), SamplingParams(max_tokens=3, stop=("é",)), generated=[1, 2])


def frames(*messages: ToEngine) -> bytes:
    encoder = msgspec.msgpack.Encoder()
    return b"".join(module.encode_frame(encoder, message) for message in messages)


def reader() -> FrameReader[ToEngine]:
    return FrameReader(msgspec.msgpack.Decoder(ToEngine))


@pytest.mark.parametrize("step", [1, 3, 1000, 10**6])
def test_messages_survive_any_cutting(step: int) -> None:
    data = frames(ADD, Abort(7), ADD)
    found: list[ToEngine] = []
    one = reader()
    for start in range(0, len(data), step):
        found += one.feed(data[start : start + step])
    assert found == [ADD, Abort(7), ADD]


def test_an_absurd_length_is_refused_before_it_is_awaited() -> None:
    with pytest.raises(FrameError, match="announced"):
        list(reader().feed(b"\xff\xff\xff\xff"))


def test_garbage_is_a_frame_error() -> None:
    with pytest.raises(FrameError, match="undecodable"):
        list(reader().feed(b"\x00\x00\x00\x02\xc1\xc1"))


def test_a_message_over_the_bound_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="the limit is 100"):
        frames(ADD)


async def test_both_ends_talk() -> None:
    ours, theirs = socket.socketpair()
    service, engine = await ServiceEnd.open(ours), EngineEnd(theirs)
    await service.send(ADD)
    service.send_soon(Abort(7))
    received = engine.receive(wait=True)
    while len(received) < 2:
        received += await asyncio.to_thread(engine.receive, wait=True)
    assert received == [ADD, Abort(7)]
    engine.send(Fatal("gone"))
    assert await service.receive() == [Fatal("gone")]
    service.close()
    with pytest.raises(ChannelClosed):
        await asyncio.to_thread(engine.receive, wait=True)
    with pytest.raises(ChannelClosed):
        engine.send(Fatal("again"))
    theirs.close()


async def test_the_engine_does_not_block_while_it_has_work() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert EngineEnd(theirs).receive(wait=False) == []


async def test_send_waits_for_an_engine_that_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    service = await ServiceEnd.open(ours)
    big = Add(1, list(range(100_000)), SamplingParams(max_tokens=1))

    async def send_much() -> None:
        for _ in range(20):
            await service.send(big)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send_much(), 0.2)
    service.close()
    theirs.close()
