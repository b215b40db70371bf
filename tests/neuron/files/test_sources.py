"""The store: sources, complete folders and digests."""

import subprocess
import sys
from pathlib import Path

import pytest

from neuron.files import sources
from neuron.models.checkpoint import INDEX
from protocol.errors import ErrorCode, FleetError
from tests.support.model_folders import failure, ignore_progress, weights, write

SRC = Path(sources.__file__).parents[2]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("cortex-demo", "cortex-demo"),
        ("demo", "cortex-demo"),
        ("mine=demo", "mine"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B@refs/pr/1", "Qwen/Qwen3-8B"),
        ("big=Qwen/Qwen3-8B@main", "big"),
        ("team/model=/srv/a=b", "team/model"),
        ("/srv/models/Some-Model/", "Some-Model"),
        ("/srv/models/a=b", "a=b"),
        ("~/models/x", "x"),
        ("./org/../y", "y"),
    ],
)
def test_ids(source: str, name: str) -> None:
    assert sources.model_id(source) == name


async def test_an_existing_folder_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "org" / "name")
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sources.model_id("org/name") == "name"
    assert sources.model_id("a=b") == "a=b"
    assert sources.model_id(".") == tmp_path.name
    assert await sources.resolve("org/name", ignore_progress) == tmp_path / "org/name"


@pytest.mark.parametrize("source", ["", "=/srv/x", "/", "n" * 201, "a\nb=/srv/x"])
def test_sources_without_a_usable_name(source: str) -> None:
    with pytest.raises(FleetError, match="does not name a model") as caught:
        sources.model_id(source)
    assert caught.value.error.code is ErrorCode.MODEL_NOT_FOUND


async def test_folders_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (str(folder), f"name={folder}", "~/m", "name=~/m"):
        assert await sources.resolve(source, ignore_progress) == folder


async def test_the_demo_is_in_the_package() -> None:
    demo = Path(sources.__file__).parents[1] / "demo_model"
    if demo.is_dir():
        assert await sources.resolve("demo", ignore_progress) == demo
    else:  # a checkout before its training
        assert str(demo) in str(await failure("demo"))


@pytest.mark.parametrize(
    ("missing", "there", "words"),
    [
        ("config.json", {}, "no config.json, only model.safetensors, tokenizer.json."),
        ("model.safetensors", {}, "no *.safetensors (the only supported weight format), only"),
        ("model.safetensors", {"a__gguf": b"", "b__bin": b""}, "only a.gguf, b.bin."),
        ("tokenizer.json", {}, "no tokenizer.json, only unrelated files"),
        ("tokenizer.json", {"tokenizer__model": b""}, "no tokenizer.json, only tokenizer.model."),
        ("model.safetensors", {"m-00002-of-00003__safetensors": b""}, "no model.safetensors.index"),
        (INDEX, {INDEX: b'{"weight_map": {"a": "x", "b": "y"}}'}, "no x (model.safetensors.index"),
        (INDEX, {INDEX: b"{"}, "it is not a valid index"),
    ],
)
async def test_incomplete_folders(
    tmp_path: Path, missing: str, there: dict[str, bytes | None], words: str
) -> None:
    error = await failure(write(tmp_path / "m", **{missing: None} | there))
    assert error.error.code is ErrorCode.MODEL_NOT_FOUND
    assert words in str(error)
    assert str(error).startswith(str(tmp_path / "m"))


async def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in str(await failure(tmp_path / "none"))
    (tmp_path / "model.gguf").write_bytes(b"")
    assert "Name the folder" in str(await failure(tmp_path / "model.gguf"))
    assert "No such file" in str(await failure("Qwen3-8B"))


async def test_a_link_into_nowhere_is_a_missing_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tokenizer__json=None)
    (folder / "tokenizer.json").symlink_to(tmp_path / "deleted")
    assert "no tokenizer.json" in str(await failure(folder))


# -- digests -----------------------------------------------------------------------------------


def test_equal_files_have_equal_digests(tmp_path: Path) -> None:
    data = bytes(200_000)
    one = write(tmp_path / "one", model__safetensors=weights(data=data))
    other = write(tmp_path / "other", model__safetensors=weights(data=data), README__md=b"hello")
    assert sources.revision_digest(one) == sources.revision_digest(other)
    assert len(bytes.fromhex(sources.revision_digest(one))) == 32


def test_a_fine_tuning_differs_in_its_numbers_only(tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / name, model__safetensors=weights(data=number * 200_000))
        for name, number in (("one", b"1"), ("other", b"2"))
    )
    assert sources.revision_digest(one) != sources.revision_digest(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"config__json": b"{}"},
        {"generation_config__json": b"{}"},
        {"tokenizer__json": b"{ }"},
        {"tokenizer_config__json": b"{}"},
        {"chat_template__jinja": b"{{ messages }}"},
        {"additional_chat_templates/tools__jinja": b""},
        {"model__safetensors": weights(b' {"__metadata__":{}}')},
        {"model__safetensors": weights(data=b"1")},
        {"model__safetensors": None, "other__safetensors": weights()},
        {"model__safetensors__index__json": b'{"weight_map": {}}'},
    ],
)
def test_every_file_that_shapes_answers_counts(
    tmp_path: Path, changes: dict[str, bytes | None]
) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other", **changes)
    assert sources.revision_digest(one) != sources.revision_digest(other)


def test_a_digest_needs_readable_files(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="No such file"):
        sources.revision_digest(tmp_path / "none")
    assert sources.revision_digest(write(tmp_path / "damaged", model__safetensors=b"\xff" * 20))


def test_the_store_is_quick_to_import_and_free_of_torch() -> None:
    script = (
        "import sys, neuron.files.sources; assert 'huggingface_hub' not in sys.modules;"
        "import huggingface_hub; huggingface_hub.snapshot_download;"
        "import neuron.hardware.discovery; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": str(SRC)})
