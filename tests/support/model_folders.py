"""Model folders and questions to the model store, for its tests."""

from pathlib import Path

import pytest

from neuron.files import sources
from neuron.files.hub import Download
from protocol.errors import FleetError

CONFIG = b'{"model_type": "qwen3"}'


def weights(header: bytes = b'{"__metadata__": {}}', data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


FILES = {"config.json": CONFIG, "model.safetensors": weights(), "tokenizer.json": b"{}"}


def write(folder: Path, **changes: bytes | None) -> Path:
    """A complete model folder; *changes*: ``config__json`` is config.json, None removes."""
    files = FILES | {name.replace("__", "."): content for name, content in changes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def ignore_progress(*_: int) -> None:
    """For tests of something else."""


async def failure(source: object, download: Download | None = None) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await sources.resolve(str(source), ignore_progress, download=download)
    assert caught.value.error.message.endswith(".")
    return caught.value
