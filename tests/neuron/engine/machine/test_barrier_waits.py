"""Compute threads spin while they are alone, and sleep beside others."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from neuron.engine.machine.barrier_waits import (
    ALONE,
    CALM_SECONDS,
    CROWDED,
    MOST_CALM_SECONDS,
    BarrierWaits,
    Policy,
    Times,
    crowding,
    thread_times,
)


def test_crowding_is_how_many_threads_wait_while_the_process_computes() -> None:
    before = {"1": Times(10.0, 1.0), "2": Times(5.0, 1.0), "gone": Times(1.0, 1.0)}
    after = {"1": Times(10.5, 1.5), "2": Times(5.25, 1.25), "new": Times(9.0, 9.0)}
    assert crowding(before, after, 1.0) == pytest.approx(0.75)
    assert crowding(before, after, 100.0) is None, "it hardly computed"
    assert crowding({}, after, 1.0) is None


def test_spinning_ends_at_once_and_begins_again_after_a_while() -> None:
    policy = Policy()
    assert policy.spins
    policy.look(CROWDED + 0.1, 0.25)
    assert not policy.spins
    policy.look(None, 100.0)
    assert not policy.spins, "a process that does nothing learns nothing"
    policy.look(ALONE - 0.1, CALM_SECONDS / 2)
    policy.look(ALONE + 0.01, 0.25)
    policy.look(ALONE - 0.1, CALM_SECONDS / 2)
    assert not policy.spins, "it was interrupted"
    policy.look(ALONE - 0.1, CALM_SECONDS / 2)
    assert policy.spins


def test_times_are_read_and_absent_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("2000000000 500000000 3\n")
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "schedstat").write_text("odd\n")
    (tmp_path / "9").mkdir()
    assert thread_times(tmp_path) == {"7": Times(2.0, 0.5)}
    assert thread_times(tmp_path / "absent") == {}


def test_idle_threads_come_and_go() -> None:
    waits = BarrierWaits()
    if waits._gomp is None:
        pytest.skip("torch does not compute with libgomp here")
    torch.ones(1 << 20).add_(1)
    usual = len(thread_times())
    for _ in range(2):
        waits._let_spin(False)
        deadline = time.monotonic() + 5
        while len(thread_times()) < usual + 2:
            assert time.monotonic() < deadline, "one that holds them, and them"
            time.sleep(0.01)
        waits._let_spin(True)
        while len(thread_times()) > usual:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "no-spinning"]


def test_what_loading_did_to_itself_is_forgotten() -> None:
    waits = BarrierWaits()
    waits._policy.look(CROWDED + 0.1, 0.25)
    assert not waits._policy.spins
    waits.forget()
    assert waits._policy.spins


def test_a_disturbance_that_passes_costs_little_and_one_that_stays_is_not_tried_often() -> None:
    policy = Policy()
    waited = []
    for spun in (0, 0, 0, 0, 0, 2 * MOST_CALM_SECONDS, 0):
        policy.look(ALONE - 0.1, spun)
        policy.look(CROWDED + 0.1, 0.25)
        waited.append(0.0)
        while not policy.spins:
            policy.look(ALONE - 0.1, CALM_SECONDS)
            waited[-1] += CALM_SECONDS
    assert waited == [0.5, 1.0, 2.0, 4.0, 4.0, 0.5, 1.0]


PROGRAM = """
import sys, time, torch
from neuron.engine.machine.barrier_waits import BarrierWaits
torch.set_num_threads(2)
if sys.argv[1] == "minds":
    BarrierWaits().start()
one = torch.ones(1 << 16)
def products(seconds):
    count, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        one.add_(1.0)
        count += 1
    return count
products(1.0)
sys.stdout.write(str(products(2.0)))
"""


@pytest.mark.slow
def test_a_busy_host_is_borne() -> None:
    """The same work beside as many busy processes as there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        done = {
            name: int(subprocess.check_output([sys.executable, "-c", PROGRAM, name]))
            for name in ("spins", "minds")
        }
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done["minds"] > 2 * done["spins"], done
