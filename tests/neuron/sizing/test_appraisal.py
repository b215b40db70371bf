"""What a model would take here, over one device or several."""

from pathlib import Path

import pytest

from neuron.config import NeuronConfig
from neuron.models.errors import LoadError
from neuron.sizing.appraisal import appraise
from protocol.catalogue import Profile
from protocol.fleet import Device, DeviceKind, Estimate
from tests.support.tiny_models import write_checkpoint

GIB = 1 << 30
CONFIG = NeuronConfig(name="n", slots=4)


def gpu(index: int, size: int) -> Device:
    return Device(DeviceKind.CUDA, index, f"gpu {index}", size, budget_bytes=size)


def found(folder: Path | None, *devices: Device, **profile: int) -> Estimate:
    estimate = appraise(folder, Profile("m", **profile), CONFIG, devices)  # type: ignore[arg-type]
    assert estimate is not None
    return estimate


def test_two_cards_share_a_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    cards = gpu(0, 8 * GIB), gpu(1, 4 * GIB), gpu(2, 6 * GIB)
    alone, shared = found(folder, *cards), found(folder, *cards, min_devices=2)
    assert (alone.devices, shared.devices) == (1, 2)
    assert shared.kv_bytes * 2 == alone.kv_bytes
    assert alone.weight_bytes / 2 <= shared.weight_bytes < alone.weight_bytes
    assert shared.lines[-1] == "each of 2 ranks, on 2 devices"


def test_ranks_on_a_cpu_share_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    cpu = Device(DeviceKind.CPU, 0, "cpu", 8 * GIB, budget_bytes=8 * GIB)
    alone, shared = found(folder, cpu), found(folder, cpu, min_devices=2)
    assert shared.devices == 1
    assert shared.kv_bytes == alone.kv_bytes
    assert shared.overhead_bytes > 1.9 * alone.overhead_bytes, "two processes"


def test_an_operators_word_is_for_all_devices_together(tmp_path: Path) -> None:
    cards = gpu(0, 8 * GIB), gpu(1, 8 * GIB)
    for folder in (None, write_checkpoint(tmp_path)):
        assert found(folder, *cards, vram_mb=3000, min_devices=2).bytes_each == 1500 << 20
        assert found(folder, *cards, vram_mb=3000).bytes_each == 3000 << 20


@pytest.mark.parametrize(
    ("cards", "ranks", "words"),
    [
        (1, 2, "shared by 2 devices (min_devices), but this node has 1"),
        (4, 3, "one of 1, 2, 4"),
        (0, 1, "No device of this node may be used for models"),
    ],
)
def test_what_cannot_be(tmp_path: Path, cards: int, ranks: int, words: str) -> None:
    folder = write_checkpoint(tmp_path, num_attention_heads=4, num_key_value_heads=2)
    devices = [gpu(index, 8 * GIB) for index in range(cards)]
    with pytest.raises(LoadError) as caught:
        found(folder, *devices, min_devices=ranks)
    assert words in caught.value.message
