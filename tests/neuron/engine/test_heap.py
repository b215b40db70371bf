"""Memory that a load has dropped is given back. In processes of their own: thresholds stay."""

import subprocess
import sys

import pytest

from tests.support.up import environment

_PROGRAM = """
import contextlib, os, sys
import torch
from neuron.engine import heap
from neuron.host import private_bytes

tidy = heap.tidy() if sys.argv[1] == "tidy" else contextlib.nullcontext()
before = private_bytes(os.getpid())
with tidy:
    kept = []
    for _ in range(24):  # as a load does: a matrix is read, laid out anew, dropped
        read = torch.ones(3 << 18)
        kept.append(read.clone())
        small = torch.ones(1 << 10)
        kept.append(small)
        del read
    size = sum(tensor.nbytes for tensor in kept)
    taken = private_bytes(os.getpid()) - before
print((taken - size) >> 20)
step = torch.ones(5 << 20)  # of a step: from the heap, which keeps it
at = private_bytes(os.getpid())
del step
print((at - private_bytes(os.getpid())) >> 20)
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
