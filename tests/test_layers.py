"""The import contracts can fail: each planted violation turns one of them red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PLANTED = [
    ("cortex/api/dialects/chat/decode.py", "cortex.api.dialects.messages.types", "dialects know"),
    ("cortex/api/error_responses.py", "torch", "machine-learning stack"),
    ("cortex/dispatch/router.py", "asyncio", "pure decisions of the gateway"),
    ("cortex/fleet/state.py", "cortex.dispatch.router", "rooms of the gateway"),
    ("cortex/placement/planner.py", "cortex.dispatch.fair_queue", "rooms of the gateway"),
    ("cortex/streams/state.py", "time", "pure decisions of the gateway"),
    ("neuron/engine/blocks.py", "torch", "pure decisions of the engine"),
    ("neuron/engine/runner.py", "protocol.bus.kv", "engine never sees the bus"),
    ("neuron/hardware/host.py", "neuron.service.node", "rooms of the neuron"),
    ("neuron/service/node.py", "neuron.engine.blocks", "engine is another process"),
    ("neuron/text/answer_splitter.py", "protocol.bus.connection", "text and models"),
    ("protocol/frames.py", "nats", "only protocol.bus knows NATS"),
    ("protocol/runtime/loop.py", "protocol.frames", "protocol.runtime is plumbing"),
]


@pytest.mark.parametrize(("file", "module", "contract"), PLANTED, ids=str)
def test_a_planted_violation_is_seen(tmp_path: Path, file: str, module: str, contract: str) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("demo_model"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / file).open("a") as source:
        source.write(f"\nimport {module}\n")
    checked = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
    )
    broken = [line for line in checked.stdout.splitlines() if " BROKEN" in line]
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert any(contract in line for line in broken), checked.stdout
