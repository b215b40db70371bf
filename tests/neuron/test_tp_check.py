"""``neuron tp-check``, as an operator runs it."""

import os
import signal
import threading
import time

import pytest
from click.testing import CliRunner

from neuron import tp_check
from neuron.cli import cli
from tests.support.ranks import rank_processes

PROGRAM = "neuron.engine.check"


def test_two_ranks_on_a_cpu_can_share_a_model() -> None:
    result = CliRunner().invoke(cli, ["tp-check", "--device", "cpu", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    first, met, sums, *table, model, verdict = result.output.splitlines()
    assert first == "2 ranks: cpu, cpu"
    assert met.startswith("2 ranks met after")
    assert met.endswith("over gloo")
    assert sums == "sums are right"
    assert len(table) == 5
    assert model.startswith("the demo model's logits: as on one rank")
    assert verdict == "these devices can share a model"


def test_a_device_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(cli, ["tp-check", "--device", "cpu", "--device", "cuda:9"])
    assert result.exit_code == 1
    assert "rank 1 (cuda:9) ended with status 4" in result.output
    assert "Device 'cuda:9' cannot be used" in result.output
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1] == "these devices cannot share a model"


def test_one_device_is_not_enough() -> None:
    result = CliRunner().invoke(cli, ["tp-check", "--device", "cpu"])
    assert result.exit_code == 1
    assert "1 device is not enough" in result.output


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_does_not_go_on_is_named(how: signal.Signals) -> None:
    said: list[str] = []

    def disturb() -> None:
        while len(found := rank_processes(PROGRAM)) < 2:
            time.sleep(0.01)
        os.kill(found[-1], how)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert not tp_check.check(("cpu", "cpu"), said.append, seconds=6)
    thread.join()
    text = "\n".join(said)
    assert "rank 1 (cpu)" in text
    assert "stuck" in text if how is signal.SIGSTOP else "status -9" in text
    assert not rank_processes(PROGRAM)
