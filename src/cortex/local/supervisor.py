"""Child processes that are started, watched, logged and restarted.

A child that ends without being asked to is restarted after a pause that doubles from 0.2 s to a
limit and resets once the child has run for a while. Exit code 78 (EX_CONFIG) means that another try
cannot help: the supervisor passes on the child's last words instead.
"""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from cortex.local.log_file import LogFile
from protocol.runtime.die_with_parent import bound_to_this_process
from protocol.runtime.settings import SettingsError

EX_CONFIG = 78
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
LONGEST_BROKER_PAUSE_SECONDS = 1.0
"""Nothing works without the broker."""
_HEALTHY_SECONDS = 30.0

Say = Callable[[str], None]
"""Shows one line to the person at the terminal."""


class HopelessChild(Exception):
    """Raised when a child reports that its configuration cannot work."""


class SupervisedProcess:
    """One supervised process; it dies with this one, even by SIGKILL."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        say: Say,
        *,
        pass_fds: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        longest_pause: float = LONGEST_PAUSE_SECONDS,
    ) -> None:
        """*longest_pause*: seconds before it is started again, at most."""
        self.name = name
        self._command = command
        self._log_path = log_path
        self._say = say
        self._pass_fds = pass_fds
        self._environment = environment
        self._longest_pause = longest_pause
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._last_line = ""

    async def run(self) -> None:
        """Keeps the process running until :meth:`stop`; raises :class:`HopelessChild`."""
        pause = FIRST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while not self._stopping:
            started = loop.time()
            code = await self._run_once()
            if self._stopping:
                return
            if code == EX_CONFIG:
                raise HopelessChild(self._last_line or f"{self.name} cannot start")
            if loop.time() - started > _HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._say(f"{self.name} {_how_it_ended(code)}; restarting in {pause:.1f} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._longest_pause)

    async def stop(self, grace_seconds: float) -> None:
        """Sends SIGTERM, then SIGKILL after the grace period."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a stopped process would not see the SIGTERM
        try:
            async with asyncio.timeout(grace_seconds):
                await process.wait()
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """Sends SIGKILL at once."""
        self._stopping = True
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _run_once(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            *bound_to_this_process(*self._command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=self._pass_fds,
            env=self._environment,
        )
        assert self._process.stdout
        await self._copy_log(self._process.stdout)
        return await self._process.wait()

    async def _copy_log(self, output: asyncio.StreamReader) -> None:
        """Copies all output to the log file; warnings and worse also go to the person."""
        log = LogFile(self._log_path)
        try:
            while line := await _read_line(output):
                log.write(line)
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._last_line = text
                if _is_alarming(text):
                    self._say(f"{self.name}: {text}")
        finally:
            log.close()


class Restarting:
    """Restarts something that is not a plain command (the broker), under the same rules."""

    def __init__(
        self, name: str, start: Callable[[], Awaitable[asyncio.subprocess.Process]], say: Say
    ) -> None:
        self._name = name
        self._start = start
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self.stopping = False

    async def run(self, process: asyncio.subprocess.Process) -> None:
        """Watches *process*, and starts another one whenever it ends, until ``stopping``."""
        while True:
            self._process = process
            code = await process.wait()
            if self.stopping:
                return
            self._say(f"{self._name} {_how_it_ended(code)}; restarting")
            process = await self._started()

    def restart(self, why: str) -> None:
        """Ends the process, so that another one is started."""
        if self._process is not None and self._process.returncode is None and not self.stopping:
            self._say(f"{self._name} is restarted: {why}")
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
                self._process.send_signal(signal.SIGCONT)

    async def _started(self) -> asyncio.subprocess.Process:
        """Starts it, again and again: what is in the way, such as a full disk, may go away."""
        said, pause = "", FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._start()
            except (SettingsError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self._say(f"{self._name} cannot be started: {said}; trying again")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_BROKER_PAUSE_SECONDS)


async def _read_line(output: asyncio.StreamReader) -> bytes:
    """Reads one line of any length; a line beyond the reader's limit arrives in pieces."""
    try:
        return await output.readuntil(b"\n")
    except asyncio.IncompleteReadError as rest:
        return rest.partial
    except asyncio.LimitOverrunError as long:
        return await output.read(long.consumed)


def _is_alarming(text: str) -> bool:
    """Whether a line is for the person at the terminal; the models' fate is shown by their
    states."""
    if " model: " in text[:40]:
        return False
    return any(f" {level} " in text[:40] for level in ("WARNING", "ERROR", "CRITICAL"))


def _how_it_ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"
