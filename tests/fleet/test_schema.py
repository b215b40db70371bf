"""Requests made by machine from the exported OpenAPI document: nothing breaks, and the document is
true. ``SCHEMA_EXAMPLES=200`` makes the whole run.

That every valid body is answered is not asked for: a prompt may be too long, and a token none of
the model's, which no schema can say.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from protocol.catalogue import Profile
from tests.support.fleet import MODEL, running_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

EXAMPLES = os.environ.get("SCHEMA_EXAMPLES", "")
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


@pytest.mark.timeout(3000)
async def test_the_exported_document(nats: NatsServer, tmp_path: Path) -> None:
    anything = Profile(MODEL, aliases=("*",))
    async with running_fleet(nats, (anything,)) as fleet:
        await fleet.add_node(Script(slots=16, step_seconds=0.0005).start)
        await fleet.ready()
        await until(lambda: fleet.gateway.catalogue.resolve("x", [MODEL]) == MODEL)
        command = [str(SCHEMATHESIS), "run", f"{fleet.url}/openapi.json", "--checks", "all"]
        command += ["--exclude-checks", "positive_data_acceptance", "--no-color", "--workers", "2"]
        if EXAMPLES:
            command += ["--max-examples", EXAMPLES]
        else:
            command += ["--max-examples", "10", "--seed", "1", "--phases", "fuzzing"]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
    said = out.decode(errors="replace")
    assert process.returncode == 0, said[-8000:]
