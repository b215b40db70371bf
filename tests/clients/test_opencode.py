"""opencode reads a file, mends it and says so, with every request going to the fleet."""

from pathlib import Path

import pytest

from tests.clients.agent import Agent, assert_mended, installed, misspelt, recipe, run
from tests.support.fleet import MODEL, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

QUIET = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_SHARE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
}
"""So that it asks nobody but the fleet."""


async def test_opencode_mends_a_file(nats: NatsServer, tmp_path: Path) -> None:
    opencode = await installed("opencode")
    file = misspelt(tmp_path)
    agent = Agent(
        ("read", {"filePath": str(file)}),
        ("edit", {"filePath": str(file), "oldString": "wrold", "newString": "world"}),
    )
    script = Script(agent.answer, context=200_000)
    async with scripted_fleet(nats, script) as fleet:
        (file.parent / "opencode.json").write_text(recipe("opencode", fleet.url, MODEL))
        environment = {**QUIET, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
        command = [opencode, "run", "--title", "typo", "--auto", "Mend the typo in hello.txt."]
        code, said = await run(command, file.parent, environment)
    assert code == 0, said
    assert "The typo is mended." in said
    assert_mended(file, agent)
