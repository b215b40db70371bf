"""One request on the bus is readable: JSON lines on subjects that say what they are."""

import asyncio
import json
import sys
from pathlib import Path

from click.testing import CliRunner

from cortex.cli.main import cli
from cortex.cli.spy import spy
from protocol import codec, frames, job
from tests.support.fleet import scripted_fleet
from tests.support.nats import NatsServer, connected, running_nats
from tests.support.scripted import Script
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


async def test_the_verb_shows_it_until_it_is_stopped(nats: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("unused\n")
    command = ["spy", "--nats", nats.url, "--nats-token-file", str(tmp_path / "token")]
    shown = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cortex", *command, "cortex.x.*", stdout=asyncio.subprocess.PIPE
    )
    assert shown.stdout
    line = asyncio.ensure_future(shown.stdout.readline())
    try:
        async with asyncio.timeout(30), connected(nats.url, "speaker") as bus:
            while not line.done():
                await bus.publish("cortex.y.1", b"not asked for")
                await bus.publish("cortex.x.1", b'{"a":1}')
                await asyncio.wait([line], timeout=0.1)
        assert line.result() == b'cortex.x.1 {"a":1}\n'
    finally:
        shown.kill()
        await shown.communicate()


def test_a_server_that_refuses_it_is_one_line(tmp_path: Path) -> None:
    with running_nats(tmp_path, extra='authorization { token: "right" }\n') as server:
        result = CliRunner().invoke(cli, ["spy", "--nats", server.url])
    assert result.exit_code == 1
    assert result.output.startswith("cortex: ")
    assert result.output.count("\n") == 1


def test_a_token_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(cli, ["spy", "--nats-token-file", "/no/such/file"])
    assert result.exit_code == 78
    assert "/no/such/file" in result.output
