"""A child process: spawn it, kill it, wait for it, and report how it ended; no torch."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from neuron.hardware.host import process_time

STDERR_LINES = 40
STDERR_LINE_BYTES = 400
_READ_BYTES = 1 << 14
_FROM_OUTSIDE = (
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGXCPU,  # the service's own limit of processor time, which its children inherit
)


class Process(Protocol):
    """A child process; ``asyncio.subprocess.Process`` is one."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the negative number of a signal; None while it runs."""
        ...

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        """What it writes to stderr."""
        ...

    async def wait(self) -> int:
        """Waits for its end; returns ``returncode``."""
        ...


class Child:
    """One process in its own session. Keeps the last lines that it writes to stderr."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._was_killed = False  # by this service
        self._lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._reading = asyncio.create_task(self._read_stderr(), name=f"stderr-{process.pid}")

    @classmethod
    async def spawn(
        cls, command: list[str], *, fds: Sequence[int], environment: Mapping[str, str] | None
    ) -> "Child":
        """Starts *command*, which inherits *fds* under the same numbers."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=tuple(fds),
            start_new_session=True,
            env=environment,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its end has not been noticed yet."""
        return self._process.returncode is None

    @property
    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP) has stopped it; False where the system does not tell."""
        seen = process_time(self.pid)
        return seen is not None and seen.is_stopped

    @property
    def was_ended_from_outside(self) -> bool:
        """Whether a signal ended it that neither this service nor the process itself had caused."""
        return not self._was_killed and -(self._process.returncode or 0) in _FROM_OUTSIDE

    @property
    def stderr(self) -> list[str]:
        """The last lines that the process wrote to stderr."""
        return list(self._lines)

    def kill(self) -> None:
        """Kills the process and everything in its process group."""
        if self._process.returncode is None:
            self._was_killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self, kill_after: float | None = None) -> str:
        """Waits for the end, by force after *kill_after* seconds; returns how it ended."""
        try:
            async with asyncio.timeout(kill_after):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        await self._reading
        status = self._process.returncode
        assert status is not None
        how = f"exit status {status}" if status >= 0 else f"signal {_signal_name(-status)}"
        if -status == signal.SIGKILL and not self._was_killed:
            how += " (from outside, or from the kernel when memory ran out: see dmesg)"
        last = " | ".join(self.stderr[-3:])
        return f"{how}; last on stderr: {last}" if last else how

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        rest = b""
        while data := await self._process.stderr.read(_READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-STDERR_LINE_BYTES:]
            for line in lines:
                self._keep(line)
        self._keep(rest)

    def _keep(self, line: bytes) -> None:
        if line.strip():
            self._lines.append(line[:STDERR_LINE_BYTES].decode(errors="replace"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
