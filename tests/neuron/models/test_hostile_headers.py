"""Headers that would take long to read are refused at once, with the numbers."""

import json
import os
import time
from pathlib import Path

import pytest

from neuron.models import checkpoint as module
from neuron.models.checkpoint import INDEX, SINGLE, read_checkpoint
from neuron.models.config import load_config
from neuron.models.errors import LoadError


def header(folder: Path, text: bytes, name: str = SINGLE, data: int = 0) -> None:
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))


def tensors(count: int) -> bytes:
    entries = {
        f"t{n}": {"dtype": "BF16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]}
        for n in range(count)
    }
    return json.dumps(entries).encode()


def refusal(folder: Path) -> str:
    began = time.perf_counter()
    with pytest.raises(LoadError) as caught:
        read_checkpoint(folder)
    assert time.perf_counter() - began < 2
    return str(caught.value)


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"a":{"dtype":', '{"a":{"shape":[', '{"a":[{'])
@pytest.mark.parametrize("depth", [600, 5_000, 300_000])
def test_a_deep_header_is_described_in_a_sentence(tmp_path: Path, opening: str, depth: int) -> None:
    for name in (SINGLE, INDEX):
        text = (opening * depth).encode()
        header(tmp_path, text) if name == SINGLE else (tmp_path / INDEX).write_bytes(text)
        found = refusal(tmp_path)
        assert "RecursionError" not in found
        assert found.endswith("Download the model again.")


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header(tmp_path, tensors(300_000), data=600_000)
    assert f"{module.MAX_HEADER_BYTES:,}" in refusal(tmp_path)
    monkeypatch.setattr(module, "MAX_TENSORS", 100)
    header(tmp_path, tensors(101), data=202)
    found = refusal(tmp_path)
    assert "101 tensors" in found
    assert "100" in found
    header(tmp_path, tensors(100), data=200)
    assert len(read_checkpoint(tmp_path)) == 100
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {f"t{n}": SINGLE for n in range(101)}}))
    assert "101 tensors" in refusal(tmp_path)


def test_too_many_files(tmp_path: Path) -> None:
    names = {f"t{n}": f"{n}.safetensors" for n in range(module.MAX_FILES + 1)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    assert f"{module.MAX_FILES + 1:,} files" in refusal(tmp_path)


def test_what_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / INDEX).touch()
    os.truncate(tmp_path / INDEX, 50 << 30)
    assert "50 GiB" in refusal(tmp_path)
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    assert "not an ordinary file" in refusal(tmp_path)
    for make in (
        os.mkfifo,
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 9 << 30),
    ):
        path = tmp_path / "config.json"
        make(path)
        with pytest.raises(LoadError, match=r"not an ordinary file|9 GiB"):
            load_config(tmp_path)
        path.unlink()
