"""The store: sources, complete folders, digests, and downloads from a Hub that runs in the test."""

import asyncio
import errno
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

from neuron import store
from neuron.hub import Download
from neuron.models.checkpoint import INDEX
from protocol.errors import ErrorCode, FleetError

CONFIG = b'{"model_type": "qwen3"}'
SRC = Path(store.__file__).parents[1]
COMMIT = 40 * "a"


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
        await store.resolve(str(source), ignore_progress, download=download)
    assert caught.value.error.message.endswith(".")
    return caught.value


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
    assert store.model_id(source) == name


async def test_an_existing_folder_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "org" / "name")
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert store.model_id("org/name") == "name"
    assert store.model_id("a=b") == "a=b"
    assert store.model_id(".") == tmp_path.name
    assert await store.resolve("org/name", ignore_progress) == tmp_path / "org/name"


@pytest.mark.parametrize("source", ["", "=/srv/x", "/", "n" * 201, "a\nb=/srv/x"])
def test_sources_without_a_usable_name(source: str) -> None:
    with pytest.raises(FleetError, match="names no model") as caught:
        store.model_id(source)
    assert caught.value.error.code is ErrorCode.MODEL_NOT_FOUND


async def test_folders_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (str(folder), f"name={folder}", "~/m", "name=~/m"):
        assert await store.resolve(source, ignore_progress) == folder


async def test_the_demo_is_in_the_package() -> None:
    demo = Path(store.__file__).parent / "demo_model"
    if demo.is_dir():
        assert await store.resolve("demo", ignore_progress) == demo
    else:  # a checkout before its training
        assert str(demo) in str(await failure("demo"))


@pytest.mark.parametrize(
    ("missing", "there", "words"),
    [
        ("config.json", {}, "no config.json, but model.safetensors, tokenizer.json."),
        ("model.safetensors", {}, "no *.safetensors (only that format is loaded), but nothing"),
        ("model.safetensors", {"a__gguf": b"", "b__bin": b""}, "but a.gguf, b.bin."),
        ("tokenizer.json", {}, "no tokenizer.json, but nothing"),
        ("tokenizer.json", {"tokenizer__model": b""}, "no tokenizer.json, but tokenizer.model."),
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
    assert store.revision_digest(one) == store.revision_digest(other)
    assert len(bytes.fromhex(store.revision_digest(one))) == 32


def test_a_fine_tuning_differs_in_its_numbers_only(tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / name, model__safetensors=weights(data=number * 200_000))
        for name, number in (("one", b"1"), ("other", b"2"))
    )
    assert store.revision_digest(one) != store.revision_digest(other)


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
    assert store.revision_digest(one) != store.revision_digest(other)


def test_a_digest_needs_readable_files(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="No such file"):
        store.revision_digest(tmp_path / "none")
    assert store.revision_digest(write(tmp_path / "damaged", model__safetensors=b"\xff" * 20))


# -- the Hub -----------------------------------------------------------------------------------


class Hub:
    """As much of the Hub as a snapshot needs; *refuse* answers every request with an error."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.refuse: tuple[int, dict[str, str]] | None = None
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if self.refuse:
            return *self.refuse, b""
        if path.startswith("/api/models/org/name/tree/"):
            tree: Any = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040x}"}
                for i, (name, content) in enumerate(self.files.items())
            ]
        elif path.startswith("/api/models/org/name"):
            tree = {"id": "org/name", "sha": COMMIT}
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            etag = f"{list(self.files).index(name):040x}"
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, self.files[name]
        return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


@pytest.fixture
def download(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Download:
    """The real function, with a test's Hub and cache, whatever this machine's settings."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return functools.partial(
        snapshot_download, endpoint=hub.url, cache_dir=tmp_path / "cache", token=False
    )


async def test_a_model_is_fetched_once(hub: Hub, download: Download) -> None:
    hub.files |= {
        "pytorch_model.bin": b"1",
        "consolidated.safetensors": weights(),
        "onnx/config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tools.jinja": b"",
        "README.md": b"hello",
    }
    reports = []

    def on_progress(done: int, total: int) -> None:
        reports.append((done, total, threading.current_thread()))

    folder = await store.resolve("org/name", on_progress, download=download)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*FILES, "chat_template.jinja", "additional_chat_templates/tools.jinja"}
    assert all(0 < done <= total for done, total, _ in reports)
    assert {thread for *_, thread in reports} == {threading.main_thread()}
    hub.asked.clear()
    assert await store.resolve("org/name@main", ignore_progress, download=download) == folder
    assert hub.asked == []
    (folder / "model.safetensors").unlink()
    assert await store.resolve("org/name", ignore_progress, download=download) == folder
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("status", "header", "code", "advice"),
    [
        (401, "RepoNotFound", ErrorCode.MODEL_NOT_FOUND, "Check its spelling"),
        (404, "RepoNotFound", ErrorCode.MODEL_NOT_FOUND, "Check its spelling"),
        (404, "RevisionNotFound", ErrorCode.MODEL_NOT_FOUND, "See the branches and tags"),
        (403, "GatedRepo", ErrorCode.MODEL_UNAVAILABLE, "Accept the licence"),
        (401, "", ErrorCode.MODEL_UNAVAILABLE, "hf auth login"),
        (500, "", ErrorCode.MODEL_UNAVAILABLE, "It is tried again"),
    ],
)
async def test_what_the_hub_refuses(
    hub: Hub, download: Download, status: int, header: str, code: ErrorCode, advice: str
) -> None:
    hub.refuse = (status, {"X-Error-Code": header} if header else {})
    error = await failure("org/name@v2", download)
    assert error.error.code is code
    assert advice in str(error)
    assert str(error).startswith("org/name cannot be fetched: ")


async def test_an_unreachable_hub(
    hub: Hub, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = functools.partial(download, endpoint="http://127.0.0.1:1")
    assert "cannot be reached (ConnectError" in str(await failure("org/name", nowhere))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in str(await failure("org/name", download))
    assert hub.asked == []


async def test_a_repository_that_is_no_model(hub: Hub, download: Download) -> None:
    hub.files = {"config.json": CONFIG, "model.gguf": b""}
    assert "no *.safetensors" in str(await failure("org/name", download))


async def test_half_a_snapshot_is_completed(tmp_path: Path) -> None:
    def download(*_: object, local_files_only: bool, **__: object) -> str:
        return str(write(tmp_path / "m", tokenizer__json=None if local_files_only else b"{}"))

    assert await store.resolve("org/name", ignore_progress, download=download) == tmp_path / "m"


def uncached(fetch: Callable[[Any], str]) -> Download:
    """A downloader with an empty cache."""

    def download(*_: object, local_files_only: bool, tqdm_class: Any, **__: object) -> str:
        if local_files_only:
            raise FileNotFoundError
        return fetch(tqdm_class)

    return download


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full after 1.0 of 7.0 GB"),
        (RuntimeError("Data: No space left on device (os error 28)"), "Make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), "broke off"),
        (TimeoutError("read"), "broke off (TimeoutError: read). It is tried again."),
    ],
)
async def test_downloads_that_break(raised: Exception, words: str) -> None:
    def fetch(tqdm_class: Any) -> str:
        tqdm_class(total=7_000_000_000, unit="B").update(1_000_000_000)
        raise raised

    assert words in str(await failure("org/name", uncached(fetch)))


async def test_progress_is_reported_a_few_times_a_second(tmp_path: Path) -> None:
    def fetch(tqdm_class: Any) -> str:
        with tqdm_class(total=2) as files:
            network, disk = (tqdm_class(total=5000, unit="B") for _ in range(2))
            for bar, step in [(network, 3), (disk, 5), (files, 1)] * 1000:
                bar.update(step)
        return str(write(tmp_path / "m"))

    reports: list[tuple[int, ...]] = []
    await store.resolve("org/name", lambda *r: reports.append(r), download=uncached(fetch))
    assert reports[0] == (5, 5000)
    assert len(reports) < 10


async def test_a_cancelled_download_ends_and_reports_no_more() -> None:
    begun, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def fetch(tqdm_class: Any) -> str:
        bar = tqdm_class(total=1, unit="B")
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                bar.update(0)
        finally:
            ended.set()

    reports: list[tuple[int, ...]] = []
    fetching = asyncio.create_task(
        store.resolve("org/name", lambda *report: reports.append(report), download=uncached(fetch))
    )
    await begun.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    reports.clear()
    assert await asyncio.to_thread(ended.wait, 5)
    assert reports == []


def test_the_store_is_quick_to_import_and_free_of_torch() -> None:
    script = (
        "import sys, neuron.store; assert 'huggingface_hub' not in sys.modules;"
        "import huggingface_hub; huggingface_hub.snapshot_download;"
        "import neuron.discovery; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": str(SRC)})
