"""``neuron tp-check``, as an operator runs it."""

import os
import re
import signal
import threading
import time

import pytest
from click.testing import CliRunner

from neuron import tp_check
from neuron.cli import cli
from neuron.hardware.discovery import Hardware
from protocol.fleet import Device, DeviceKind
from tests.support.ranks import rank_processes

PROGRAM = "neuron.engine.tp_check_rank"


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
    result = CliRunner().invoke(cli, ["tp-check", "--device", "cuda:8", "--device", "cuda:9"])
    assert result.exit_code == 1
    assert re.search(r"rank \d \(cuda:[89]\) ended with status 4", result.output)
    assert re.search(r"Device 'cuda:[89]' cannot be used", result.output)
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1] == "these devices cannot share a model"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--device cpu", "1 device cannot share a model"),
        ("--device cpu --device cuda:0", "choose GPUs only, or the CPU only"),
        ("--device cuda:1 --device cuda:1", "each rank needs its own"),
        ("--device cpu --device cpu --ranks 3", "give --ranks, or --device once per rank"),
    ],
)
def test_what_cannot_be_tried_is_refused(words: str, why: str) -> None:
    result = CliRunner().invoke(cli, ["tp-check", *words.split()])
    assert result.exit_code == 1
    assert why in result.output


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Device(DeviceKind.CUDA, i, f"gpu {i}", 1 << 30) for i in range(2)]
    monkeypatch.setattr(Hardware, "discover", lambda _: gpus)
    assert tp_check.chosen_devices((), None) == ("cuda:0", "cuda:1")
    with pytest.raises(ValueError, match="--ranks 4 needs 4 GPUs, but this host has 2 usable"):
        tp_check.chosen_devices((), 4)


def test_three_ranks_add_up_and_the_demo_model_cannot_say_more() -> None:
    result = CliRunner().invoke(cli, ["tp-check", "--ranks", "3"])
    assert result.exit_code == 0, result.output
    *_, model, verdict = result.output.splitlines()
    assert model == "the demo model is not tried: it spreads over 1, 2, 4 ranks"
    assert verdict == "these devices sum tensors correctly; no model was tried"


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_does_not_go_on_is_named(how: signal.Signals) -> None:
    said: list[str] = []

    def disturb() -> None:
        while len(found := rank_processes(PROGRAM)) < 2:
            time.sleep(0.01)
        os.kill(found[-1], how)

    thread = threading.Thread(target=disturb)
    thread.start()
    verdict = tp_check.check(("cpu", "cpu"), said.append, seconds=6)
    assert verdict is tp_check.Verdict.FAILS
    thread.join()
    text = "\n".join(said)
    assert "rank 1 (cpu)" in text
    assert "stuck" in text if how is signal.SIGSTOP else "status -9" in text
    assert not rank_processes(PROGRAM)
