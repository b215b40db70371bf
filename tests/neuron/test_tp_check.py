"""``neuron tp-check``, as an operator runs it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from neuron import tp_check
from neuron.cli import cli


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
        while not (found := _ranks()):
            time.sleep(0.01)
        os.kill(found[-1], how)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert not tp_check.check(("cpu", "cpu"), said.append, seconds=6)
    thread.join()
    text = "\n".join(said)
    assert "rank 1 (cpu)" in text
    assert "stuck" in text if how is signal.SIGSTOP else "status -9" in text
    assert not _ranks()


def _ranks() -> list[int]:
    """The processes of this one, by rank; none until both are there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"neuron.engine.check" in words and int(parent) == os.getpid():
            found.append((int(words[words.index(b"--rank") + 1]), int(folder.name)))
    return [pid for _, pid in sorted(found)] if len(found) == 2 else []
