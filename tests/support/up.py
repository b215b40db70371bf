"""Runs the real ``cortex up`` as a person does, and looks at its processes from outside."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.fleet import chat_body

ROOT = Path(__file__).parent.parent.parent


def environment() -> dict[str, str]:
    """Of a child that shall run this checkout's code."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


class Up:
    """A running ``cortex up``."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self._log = data.parent / f"{data.name}.out"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cortex", "up"),
                    *("--port", "0", "--metrics-port", "0", "--data", str(data)),
                    *arguments,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                cwd=data.parent,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What the person has seen so far."""
        return self._log.read_text()

    @property
    def url(self) -> str:
        """The API's address, as printed."""
        found = re.search(r"curl -N (http://[\d.:]+)/v1", self.output)
        assert found, self.output
        return found[1]

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 40) -> None:
        """Until *condition* holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self.output}"
            assert self.process.poll() is None, f"ended\n{self.output}"
            time.sleep(0.02)

    def wait_until_ready(self) -> None:
        """Until the greeting is printed."""
        self.wait(lambda: "Ready after" in self.output, "ready")

    def post(self, path: str, body: dict[str, Any], timeout: float = 20) -> Any:
        """A POST whose answer has not been read; iterates over lines."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=timeout)

    def ask(self, text: str, **body: Any) -> str:
        """One non-streaming question; the answer's text."""
        with self.post("/v1/chat/completions", chat_body(text, **body)) as answer:
            content: str = json.load(answer)["choices"][0]["message"]["content"]
            return content

    def status(self, path: str) -> int:
        """The HTTP status of a GET; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except (urllib.error.URLError, OSError):
            return 0

    def children(self) -> dict[int, str]:
        """All descendants: pid → command line."""
        return descendants(self.process.pid)

    def pid_of(self, words: str) -> int:
        """The descendant whose command line contains *words*."""
        found = [pid for pid, command in self.children().items() if words in command]
        assert len(found) == 1, (words, self.children())
        return found[0]


def descendants(pid: int) -> dict[int, str]:
    """Processes below *pid*, with their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                fields = stat.rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found: dict[int, str] = {}
    wanted = {pid}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        for child in wanted:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                found[child] = command.decode()
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs (zombies do not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def running_up(data: Path, *arguments: str) -> Iterator[Up]:
    """``cortex up`` for the length of the block, ready."""
    up = Up(data, *arguments)
    try:
        up.wait_until_ready()
        yield up
    finally:
        if up.process.poll() is None:
            up.process.send_signal(signal.SIGTERM)
            try:
                up.process.wait(20)
            except subprocess.TimeoutExpired:
                up.process.kill()
                up.process.wait()
