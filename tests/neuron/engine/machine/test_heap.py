"""Memory that a load has dropped is given back. In processes of their own: thresholds stay."""

import subprocess
import sys

import pytest

from neuron.engine.machine import heap
from neuron.hardware import dtypes
from neuron.ipc.defaults import KERNELS_KEPT
from tests.support.up import environment

_PROGRAM = """
import contextlib, os, sys
import torch
from neuron.engine.machine import heap
from neuron.hardware.host import written_bytes

tidy = heap.tidy() if sys.argv[1] == "tidy" else contextlib.nullcontext()
before = written_bytes(os.getpid())
with tidy:
    kept = []
    for _ in range(24):  # as a load does: a matrix is read, laid out anew, dropped
        read = torch.ones(3 << 18)
        kept.append(read.clone())
        small = torch.ones(1 << 10)
        kept.append(small)
        del read
    size = sum(tensor.nbytes for tensor in kept)
    taken = written_bytes(os.getpid()) - before
print((taken - size) >> 20)
step = torch.ones(5 << 20)  # of a step: from the heap, which keeps it
at = written_bytes(os.getpid())
del step
print((at - written_bytes(os.getpid())) >> 20)
"""


_KERNELS = """
import os
import torch
from neuron.hardware.host import written_bytes
from neuron.layers.linear import Kernel, LinearPlan, linear, pack

weight = pack(torch.ones(256, 256))

def compute(sizes):
    for rows in sizes:
        linear(torch.ones(rows, 256), weight, None, LinearPlan(Kernel.PACKED))
    return written_bytes(os.getpid())

before = compute(range(1, 100))
print((compute(range(100, 300)) - before) >> 20)
"""


def run(kind: str) -> tuple[int, int]:
    """MiB that a load leaves behind, and that go back when a step's 20 MiB are dropped."""
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, kind], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, result.stderr
    left, back = result.stdout.split()
    return int(left), int(back)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_a_load_leaves_no_holes_and_steps_keep_their_memory() -> None:
    left, back = run("tidy")
    assert left <= 4
    assert back <= 1


@pytest.mark.skipif(not dtypes.packs("float32"), reason="without oneDNN")
def test_kernels_of_many_sizes_are_not_kept() -> None:
    grown = [
        int(
            subprocess.run(
                [sys.executable, "-c", _KERNELS],
                capture_output=True,
                check=True,
                text=True,
                env=environment() | dict.fromkeys(heap.KERNELS_VARIABLES, str(kept)),
            ).stdout
        )
        for kept in (KERNELS_KEPT, 1024)
    ]
    assert 2 * grown[0] < 48 < grown[1]


def test_an_engine_process_says_so_before_oneDNN_asks() -> None:
    program = (
        "import os, socket, sys\n"
        "from neuron.engine.__main__ import main\n"
        "ours, theirs = socket.socketpair()\n"
        "ours.close()\n"
        "sys.argv = ['engine', '--fd', str(theirs.detach())]\n"
        "end = os._exit\n"
        "def say(status):\n"
        f"    print(status, *(os.environ[v] for v in {heap.KERNELS_VARIABLES}), flush=True)\n"
        "    end(0)\n"
        "os._exit = say\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert result.stdout.split() == ["0", "64", "64"], result.stderr
