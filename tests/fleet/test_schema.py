"""Requests made by machine from the exported OpenAPI document: nothing breaks, and the document is
true. ``SCHEMA_EXAMPLES=200`` makes the whole run.

That every valid body is answered is not asked for: a prompt may be too long, and a token none of
the model's, which no schema can say.
"""

import asyncio
import contextlib
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.catalogue import Profile
from tests.support.fleet import MODEL, TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

EXAMPLES = os.environ.get("SCHEMA_EXAMPLES", "")
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


OPENAI_SPEC = os.environ.get("OPENAI_SPEC", "")
"""The file ``openapi.yaml`` of github.com/openai/openai-openapi, which is not ours to keep here."""
OPERATIONS = {
    "/chat/completions": ("post",),
    "/completions": ("post",),
    "/responses": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
}


@contextlib.asynccontextmanager
async def any_model(nats: NatsServer) -> AsyncIterator[TestFleet]:
    """A fleet in which every name leads to the same model."""
    async with running_fleet(nats, (Profile(MODEL, aliases=("*",)),)) as fleet:
        await fleet.add_node(Script(slots=16, step_seconds=0.0005).start)
        await fleet.ready()
        await until(lambda: fleet.gateway.catalogue.resolve("x", [MODEL]) == MODEL)
        yield fleet


async def run(*arguments: str, folder: Path) -> str:
    """What it says when it finds something."""
    process = await asyncio.create_subprocess_exec(
        str(SCHEMATHESIS),
        "run",
        *arguments,
        "--no-color",
        "--workers",
        "1",  # in several threads its generator trips over a bug of Python 3.11's ast module
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return out.decode(errors="replace") if process.returncode else ""


@pytest.mark.timeout(3000)
async def test_the_exported_document(nats: NatsServer, tmp_path: Path) -> None:
    few = ["--max-examples", "3", "--seed", "1", "--phases", "fuzzing"]
    many = ["--max-examples", EXAMPLES]
    async with any_model(nats) as fleet:
        found = await run(
            f"{fleet.url}/openapi.json",
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *(many if EXAMPLES else few),
            folder=tmp_path,
        )
    assert not found, found[-8000:]


@pytest.mark.skipif(not OPENAI_SPEC, reason="OPENAI_SPEC names no file")
@pytest.mark.timeout(3000)
async def test_openai_s_own_document(nats: NatsServer, tmp_path: Path) -> None:
    """It knows no answers but 200 and 429, so that refusals are only looked at for their form."""
    yaml = importlib.import_module("yaml")
    with Path(OPENAI_SPEC).open(encoding="utf-8") as file:
        document = yaml.load(file, Loader=yaml.CSafeLoader)
    document["paths"] = {
        path: {method: document["paths"][path][method] for method in methods}
        for path, methods in OPERATIONS.items()
    }
    spec = tmp_path / "openapi.json"
    spec.write_text(json.dumps(document, default=str), encoding="utf-8")
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance"
    async with any_model(nats) as fleet:
        found = await run(
            str(spec),
            *("--url", f"{fleet.url}/v1", "--checks", checks, "--max-examples", EXAMPLES or "10"),
            *("-H", "Authorization: Bearer none"),
            folder=tmp_path,
        )
    assert not found, found[-8000:]
