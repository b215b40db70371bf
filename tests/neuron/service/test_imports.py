"""The neuron service starts fast and survives any fault of the engine because it never loads the
machine-learning stack, nor what runs models' own programs."""

import subprocess
import sys

from tests.support.up import environment

_PROGRAM = """
import sys
import neuron.cli, neuron.serve, neuron.service.node, neuron.files.sources
import huggingface_hub
heavy = {"torch", "transformers", "safetensors", "numpy", "jinja2", "tokenizers"} & set(sys.modules)
print(*sorted(heavy))
"""


def test_the_service_imports_neither_torch_nor_transformers() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_gateway_imports_neither() -> None:
    program = "import sys, cortex.cli.main, cortex.serve, cortex.local.up; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "transformers", "tokenizers", "jinja2", "neuron", "numpy"}


def test_only_who_serves_http_gets_hypercorn() -> None:
    modules = "protocol.bus, protocol.codec, protocol.runtime.listen, protocol.runtime.settings"
    program = f"import sys, {modules}, cortex.cli.main, cortex.local.up; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & {"hypercorn", "starlette"}
