"""Claude Code reads a file, mends it and says so, with every request going to the fleet."""

import json
import re
from pathlib import Path

import pytest

from tests.clients.agent import Agent, assert_mended, installed, misspelt, recipe, run
from tests.support.fleet import MODEL, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


async def test_claude_code_mends_a_file(nats: NatsServer, tmp_path: Path) -> None:
    claude = await installed("claude")
    file = misspelt(tmp_path)
    agent = Agent(
        ("Read", {"file_path": str(file)}),
        ("Edit", {"file_path": str(file), "old_string": "wrold", "new_string": "world"}),
    )
    script = Script(agent.answer, context=200_000)
    async with scripted_fleet(nats, script) as fleet:
        environment = {
            "HOME": str(tmp_path),
            **dict(re.findall(r"([A-Z_]+)=(\S+)", recipe("Claude Code", fleet.url, MODEL))),
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1",
        }
        command = [claude, "-p", "Mend the typo in hello.txt.", "--output-format", "json"]
        command += ["--dangerously-skip-permissions"]
        code, said = await run(command, file.parent, environment)
    assert code == 0, said
    assert json.loads(said)["result"] == "The typo is mended."
    assert_mended(file, agent)
