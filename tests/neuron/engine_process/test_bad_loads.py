"""Models that cannot be loaded fail with a reason; their engine processes end in order."""

import asyncio
import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron.engine_process.child import Child
from neuron.engine_process.client import EngineLoadError, EngineProcess
from neuron.engine_process.launch import start_python
from neuron.ipc.messages import Start
from tests.support.tiny_models import write_checkpoint

pytestmark = pytest.mark.xdist_group("engine_client")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def poison(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = struct.pack("<f", float("nan")) * ((len(data) - start) // 4)
    file.write_bytes(data)


def edit_config(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


DAMAGES: list[tuple[Callable[[Path], object], str, str]] = [
    (truncate, "corrupt", "truncated"),
    (poison, "corrupt", "NaN"),
    (edit_config("Qwen3ForCausalLM", "MambaForCausalLM"), "unsupported", "Qwen3ForCausalLM"),
    (edit_config('"intermediate_size": 128', '"intermediate_size": 96'), "corrupt", "[96, 64]"),
    (lambda folder: (folder / "model.safetensors").unlink(), "not_found", "safetensors"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "corrupt", "tokenizer.json"),
]


async def test_bad_models_fail_to_load_with_a_reason_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_words: list[str] = []
    ended = Child.ended

    async def record(child: Child, kill_after: float | None = None) -> str:
        how = await ended(child, kill_after)
        last_words.append(how)
        return how

    monkeypatch.setattr(Child, "ended", record)
    for number, (damage, _, _) in enumerate(DAMAGES):
        damage(write_checkpoint(tmp_path / str(number)))
    starts = [Start(str(tmp_path / str(number)), threads=1) for number in range(len(DAMAGES))]
    loads = (EngineProcess.start(start) for start in starts)
    results = await asyncio.gather(*loads, return_exceptions=True)
    for (_, code, words), error in zip(DAMAGES, results, strict=True):
        assert isinstance(error, EngineLoadError)
        assert error.code == code
        assert words in error.message
    assert last_words == ["exit status 3"] * len(DAMAGES), "each ended by itself, without a word"


async def test_a_load_that_dies_says_how(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    broken = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise SystemError('broken torch')")
    (tmp_path / "neuron").symlink_to(Path(__file__).parents[3] / "src" / "neuron")
    (tmp_path / "protocol").symlink_to(Path(__file__).parents[3] / "src" / "protocol")
    launch = functools.partial(start_python, environment=broken)
    with pytest.raises(EngineLoadError, match="broken torch") as caught:
        await EngineProcess.start(Start(str(folder)), launch=launch)
    assert caught.value.code == "crashed"
