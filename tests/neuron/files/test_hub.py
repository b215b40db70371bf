"""Downloads from a small Hub in the test: the real downloader, its progress and its failures."""

import asyncio
import errno
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

import neuron.files.hub
from neuron.files import sources
from neuron.files.hub import Download
from protocol.errors import ErrorCode
from tests.support.model_folders import CONFIG, FILES, failure, ignore_progress, weights, write

COMMIT = 40 * "a"


class Hub:
    """As much of the Hub as a snapshot needs; *refuse* answers every request with an error."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.refuse: tuple[int, dict[str, str]] | None = None
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.damaged = ""
        """This file arrives with other bytes than the Hub says."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    hub.fetched.append(self.path)
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
            content = self.files[name]
            etag = f"{list(self.files).index(name):040x}"
            if name.endswith(".safetensors"):  # a large file
                etag = hashlib.sha256(content).hexdigest()
            if name == self.damaged:
                content = content[:-1] + b"?"
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content
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

    folder = await sources.resolve("org/name", on_progress, download=download)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*FILES, "chat_template.jinja", "additional_chat_templates/tools.jinja"}
    assert all(0 < done <= total for done, total, _ in reports)
    assert {thread for *_, thread in reports} == {threading.main_thread()}
    hub.asked.clear()
    assert await sources.resolve("org/name@main", ignore_progress, download=download) == folder
    assert hub.asked == []
    (folder / "model.safetensors").unlink()
    assert await sources.resolve("org/name", ignore_progress, download=download) == folder
    assert (folder / "model.safetensors").exists()


async def test_a_file_that_arrives_damaged_is_fetched_again(hub: Hub, download: Download) -> None:
    hub.damaged = "model.safetensors"
    error = await failure("org/name", download)
    assert error.error.code is ErrorCode.MODEL_UNAVAILABLE
    assert "model.safetensors arrived damaged (SHA-256 " in str(error)
    hub.damaged = ""
    folder = await sources.resolve("org/name", ignore_progress, download=download)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


async def test_a_disk_without_room_is_said_before_the_download(
    hub: Hub, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron.files.hub, "LEFT_FREE_BYTES", 1 << 60)
    error = await failure("org/name", download)
    assert error.error.code is ErrorCode.MODEL_UNAVAILABLE
    assert " GB free, of which " in str(error)
    assert not any("/resolve/" in path and "safetensors" in path for path in hub.fetched)


@pytest.mark.parametrize(
    ("status", "header", "code", "advice"),
    [
        (401, "RepoNotFound", ErrorCode.MODEL_NOT_FOUND, "Check the spelling"),
        (404, "RepoNotFound", ErrorCode.MODEL_NOT_FOUND, "Check the spelling"),
        (404, "RevisionNotFound", ErrorCode.MODEL_NOT_FOUND, "Choose a branch or tag"),
        (403, "GatedRepo", ErrorCode.MODEL_UNAVAILABLE, "Accept the licence"),
        (401, "", ErrorCode.MODEL_UNAVAILABLE, "hf auth login"),
        (500, "", ErrorCode.MODEL_UNAVAILABLE, "It will be tried again"),
    ],
)
async def test_what_the_hub_refuses(
    hub: Hub, download: Download, status: int, header: str, code: ErrorCode, advice: str
) -> None:
    hub.refuse = (status, {"X-Error-Code": header} if header else {})
    error = await failure("org/name@v2", download)
    assert error.error.code is code
    assert advice in str(error)
    assert str(error).startswith("org/name cannot be downloaded: ")


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
    def download(*_: object, local_files_only: bool, dry_run: bool = False, **__: object) -> Any:
        if dry_run:
            return []
        return str(write(tmp_path / "m", tokenizer__json=None if local_files_only else b"{}"))

    assert await sources.resolve("org/name", ignore_progress, download=download) == tmp_path / "m"


def uncached(fetch: Callable[[Any], str]) -> Download:
    """A downloader with an empty cache."""

    def download(
        *_: object, local_files_only: bool, tqdm_class: Any, dry_run: bool = False, **__: object
    ) -> Any:
        if local_files_only:
            raise FileNotFoundError
        if dry_run:
            return []
        return fetch(tqdm_class)

    return download


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full after 1.0 of 7.0 GB"),
        (RuntimeError("Data: No space left on device (os error 28)"), "Make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), "download failed"),
        (TimeoutError("read"), "failed (TimeoutError: read). It will be tried again."),
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
    await sources.resolve("org/name", lambda *r: reports.append(r), download=uncached(fetch))
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
        sources.resolve("org/name", lambda *seen: reports.append(seen), download=uncached(fetch))
    )
    await begun.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    reports.clear()
    assert await asyncio.to_thread(ended.wait, 5)
    assert reports == []
