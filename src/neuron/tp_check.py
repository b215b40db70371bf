"""``neuron tp-check``: checks whether this host's devices can share a model; no torch.

Each rank is a process, and this module owns their lives: when one fails to start or gets stuck, it
is named and all of them are killed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from neuron.config import engine_environment, visible_devices
from neuron.hardware.discovery import Hardware
from neuron.ipc.rank_commands import ENVIRONMENT, UNTRIED
from protocol.fleet import DeviceKind

SECONDS = 120.0
CPU_RANKS = 2
_SHOWN_LINES = 5


class Verdict(StrEnum):
    """The result of a check, in words for people."""

    WORKS = "these devices can share a model"
    UNTRIED = "these devices sum tensors correctly; no model was tried"
    FAILS = "these devices cannot share a model"


def chosen_devices(asked: Sequence[str], ranks: int | None) -> tuple[str, ...]:
    """Returns one device per rank: those *asked* for, or *ranks* of the default ones.

    Raises ValueError for a choice that cannot be checked.
    """
    if asked and ranks is not None:
        raise ValueError(
            "--ranks and --device exclude each other: give --ranks, or --device once per rank"
        )
    devices = tuple(asked) or _usual_devices(ranks)
    if len(devices) < 2:
        raise ValueError(
            f"{len(devices)} device cannot share a model: at least 2 are needed. Use --ranks 2, "
            "or give --device twice"
        )
    gpus = [device for device in devices if device != "cpu"]
    if 0 < len(gpus) < len(devices):
        raise ValueError(
            "a model cannot be shared between GPUs and the CPU: choose GPUs only, or the CPU only"
        )
    if len(set(gpus)) < len(gpus):
        raise ValueError("a GPU is named twice, but each rank needs its own: name different GPUs")
    return devices


def _usual_devices(ranks: int | None) -> tuple[str, ...]:
    """All GPUs, or the first *ranks* of them; on a host without GPUs, *ranks* times the CPU."""
    hardware = Hardware(visible_devices=visible_devices())
    try:
        found = hardware.discover()
    finally:
        hardware.close()
    gpus = [f"cuda:{device.index}" for device in found if device.kind is DeviceKind.CUDA]
    if gpus and len(gpus) < (ranks or 0):
        raise ValueError(
            f"--ranks {ranks} needs {ranks} GPUs, but this host has {len(gpus)} usable: ask for "
            "fewer"
        )
    if gpus:
        return tuple(gpus[:ranks])
    return ("cpu",) * (ranks or CPU_RANKS)


def check(
    devices: Sequence[str], say: Callable[[str], None], *, seconds: float = SECONDS
) -> Verdict:
    """Runs one rank on each of *devices* and reports each finding as a line to *say*."""
    lines = [socket.socketpair() for _ in devices[1:]]
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="tp-check-") as folder:
        try:
            for number, device in enumerate(devices):
                ends = [ours for ours, _ in lines] if number == 0 else [lines[number - 1][1]]
                ranks.append(_Rank(number, device, ends, Path(folder)))
            return _watched(ranks, say, time.monotonic() + seconds)
        finally:
            for rank in ranks:
                rank.end()
            for one, other in lines:
                one.close()
                other.close()


class _Rank:
    """One rank's process; its report and stderr go to files."""

    def __init__(
        self, number: int, device: str, ends: Sequence[socket.socket], folder: Path
    ) -> None:
        self.name = f"rank {number} ({device})"
        self._report = folder / f"{number}.out"
        self._stderr = folder / f"{number}.err"
        self._said = 0
        fds = [end.fileno() for end in ends]
        command = [sys.executable, "-P", "-m", "neuron.engine.tp_check_rank", "--rank", str(number)]
        command += ["--device", device, "--lines", *map(str, fds)]
        with self._report.open("w") as out, self._stderr.open("w") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=fds,
                start_new_session=True,
                env={**engine_environment(), **ENVIRONMENT},
            )

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def news(self) -> list[str]:
        """Report lines that have not been returned yet."""
        whole = self._report.read_text().split("\n")[:-1]
        new, self._said = whole[self._said :], len(whole)
        return new

    def last_words(self) -> list[str]:
        """The last lines of its stderr."""
        return self._stderr.read_text().strip().splitlines()[-_SHOWN_LINES:]

    def end(self) -> None:
        """Kills the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _watched(ranks: Sequence[_Rank], say: Callable[[str], None], deadline: float) -> Verdict:
    while True:
        statuses = [rank.status for rank in ranks]
        for line in ranks[0].news():
            say(line)
        failed = next((rank for rank in ranks if rank.status not in (None, 0, UNTRIED)), None)
        if failed is not None:
            say(f"{failed.name} ended with status {failed.status}")
            for line in failed.last_words():
                say(f"  {line}")
            return Verdict.FAILS
        if None not in statuses:
            return Verdict.UNTRIED if UNTRIED in statuses else Verdict.WORKS
        if time.monotonic() > deadline:
            late = ", ".join(rank.name for rank in ranks if rank.status is None)
            say(f"no verdict in time; still running, or stuck: {late}")
            return Verdict.FAILS
        time.sleep(0.05)
