"""Codex reads a file, mends it and says so, with every request going to the fleet."""

from pathlib import Path

import pytest

from tests.clients.agent import Agent, assert_mended, installed, misspelt, recipe, run
from tests.support.fleet import MODEL, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

QUIET = """
check_for_update_on_startup = false

[analytics]
enabled = false

[features]
plugins = false
apps = false
"""
"""So that it asks nobody but the fleet."""


async def test_codex_mends_a_file(nats: NatsServer, tmp_path: Path) -> None:
    codex = await installed("codex")
    file, home = misspelt(tmp_path), tmp_path / "codex"
    home.mkdir()
    agent = Agent(
        ("exec_command", {"cmd": "cat hello.txt"}),
        ("exec_command", {"cmd": "sed -i s/wrold/world/ hello.txt"}),
    )
    script = Script(agent.answer, context=200_000)
    async with scripted_fleet(nats, script) as fleet:
        top, _, provider = recipe("Codex", fleet.url, MODEL).partition("\n\n")
        (home / "config.toml").write_text(f"{top}\n{QUIET}\n{provider}")
        environment = {"HOME": str(tmp_path), "CODEX_HOME": str(home)}
        command = [codex, "exec", "--skip-git-repo-check", "--json"]
        command += ["--dangerously-bypass-approvals-and-sandbox", "Mend the typo in hello.txt."]
        code, said = await run(command, file.parent, environment)
    assert code == 0, said
    assert "The typo is mended." in said
    assert_mended(file, agent)
