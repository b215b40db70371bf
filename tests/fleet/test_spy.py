"""One request on the bus is readable: JSON lines on subjects that say what they are."""

import json

from protocol import codec, frames, job
from tests.support.fleet import scripted_fleet
from tests.support.nats import NatsServer, connected
from tests.support.scripted import Script
from tests.support.spy import spy
from tests.support.waiting import until


async def test_one_request_reads_like_a_log(nats: NatsServer) -> None:
    lines: list[str] = []
    async with (
        scripted_fleet(nats, Script(lambda add: ("Hello", " ", "world"))) as fleet,
        connected(nats.url, "spy") as bus,
    ):
        await spy(bus, lines.append)
        await fleet.chat("Grüße 🎉")
        await until(lambda: any('"finished"' in line for line in lines))
    words = [line.partition(" ") for line in lines]
    first_subject, _, first = words[0]
    assert first_subject == "cortex.job.cortex-demo.normal"
    request = codec.read_job(first.encode())
    assert isinstance(request, job.Job)
    assert request.request.messages[0].content == "Grüße 🎉"
    assert "Grüße 🎉" in first, "readable as it is"
    replies = [data for subject, _, data in words if subject.startswith("cortex.reply.")]
    assert {s for s, _, _ in words if s.startswith("cortex.reply.")} == {
        f"cortex.reply.{fleet.gateway.id}.{request.id}"
    }
    kinds = [type(codec.read_frame(data.encode())) for data in replies]
    shown = [kind for kind in kinds if kind is not frames.KeepAlive]
    assert shown == [frames.Accepted, *[frames.Delta] * 3, frames.Finished]
    for _, _, data in words:
        json.loads(data)
