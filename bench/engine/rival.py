"""A contestant's process as the benchmark sees it: started, stopped between its turns, measured.

Owns the process, its pipe and its figures of memory. Between turns it is stopped by a signal, so
that nothing of it (OpenMP's spinning, a manager's polling) runs while another one is measured.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.engine import quiet
from bench.engine.peer import Contestant, Maker, Settings
from bench.engine.worker import Job, Loaded, Order, Ran
from neuron.config import engine_environment

POLL_SECONDS = 0.25
MIB = 1 << 20
Answer = TypeVar("Answer", Loaded, Ran)


class RivalError(Exception):
    """A contestant could not be loaded, or its process has ended."""


class Rival:
    """One contestant, in its own process."""

    def __init__(self, contestant: Contestant, settings: Settings, vocab: int, log: Path) -> None:
        """Starts and loads it. Raises :class:`RivalError`."""
        self.contestant, self._log = contestant, log
        self.private_peak_mib, self.resident_peak_mib = 0.0, 0.0
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.engine.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env=engine_environment() if contestant.maker is Maker.OURS else None,
            )
        try:
            self.loaded, self.load_foreign = self._ask(Job(contestant, settings, vocab), Loaded)
        except BaseException:
            self.close()
            raise
        self.private_loaded_mib = self._memory("RssAnon")
        self._pause()

    def run(self, order: Order) -> tuple[Ran, float]:
        """Runs a sample; the share of the machine that others used meanwhile comes with it."""
        os.kill(self._process.pid, signal.SIGCONT)
        try:
            return self._ask(order, Ran)
        finally:
            self._pause()

    def close(self) -> None:
        """Ends the process and waits for its end."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _pause(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGSTOP)

    def _ask(self, question: Job | Order, kind: type[Answer]) -> tuple[Answer, float]:
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        own = [self._process.pid, os.getpid()]
        before = quiet.read(own)
        line = b""
        try:
            pipes[0].write(msgspec.json.encode(question) + b"\n")
            while not line.endswith(b"\n"):
                if select.select([pipes[1]], [], [], POLL_SECONDS)[0]:
                    part = pipes[1].read(1 << 16)
                    if not part:
                        raise BrokenPipeError
                    line += part
                self._note_memory()
            return msgspec.json.decode(line, type=kind), quiet.read(own).foreign_since(before)
        except (BrokenPipeError, FileNotFoundError) as error:
            time.sleep(POLL_SECONDS)
            raise RivalError(
                f"{self.contestant.name}: its process has ended ({self._process.poll()}). The "
                f"reason is in {self._log}."
            ) from error

    def _note_memory(self) -> None:
        self.private_peak_mib = max(self.private_peak_mib, self._memory("RssAnon"))
        self.resident_peak_mib = max(self.resident_peak_mib, self._memory("VmHWM"))

    def _memory(self, key: str) -> float:
        """A figure of /proc/PID/status, in MiB; 0 for a process that is about to be gone."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / MIB
        return 0.0
