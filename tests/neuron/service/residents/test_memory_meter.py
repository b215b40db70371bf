"""What others take of a device is what neither its free memory nor this node's models explain."""

import pytest

from neuron.files.warm_tier import WarmTier
from neuron.hardware.discovery import Hardware
from neuron.service.residents.memory_meter import MemoryMeter
from neuron.sizing.ledger import Ledger
from protocol.fleet import Device, DeviceKind, DeviceUsage

GIB = 1 << 30
GPU = Device(DeviceKind.CUDA, 0, "GPU", 16 * GIB, budget_bytes=16 * GIB)
CPU = Device(DeviceKind.CPU, 0, "CPU", 32 * GIB, budget_bytes=32 * GIB)
SIZES = {17: 2 * GIB, 18: 3 * GIB, 19: GIB, 20: 3 * GIB}
HELPER, SHARED = 20, GIB


class HalfFree(Hardware):
    """Devices of whose memory one half is free."""

    def usage(self, devices: object) -> tuple[DeviceUsage, ...]:
        return tuple(DeviceUsage(d.kind, d.index, d.memory_bytes // 2) for d in (GPU, CPU))


class FourGibLocked(WarmTier):
    """A warm tier that holds two models."""

    @property
    def held(self) -> dict[str, int]:
        return {"x": GIB, "y": 3 * GIB}


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> MemoryMeter:
    module = "neuron.service.residents.memory_meter"
    monkeypatch.setattr(f"{module}.written_bytes", SIZES.__getitem__)
    monkeypatch.setattr(f"{module}.shared_out_bytes", lambda pid: SIZES[pid] - SHARED)
    helpers = (HELPER, 17)  # an engine that is known counts once
    return MemoryMeter(
        HalfFree(visible_devices=None), (GPU, CPU), FourGibLocked(0), lambda: helpers
    )


async def test_an_engine_on_a_cpu_is_measured_and_on_a_gpu_taken_at_its_word(
    meter: MemoryMeter,
) -> None:
    ledger = Ledger(meter.devices)
    ledger.reserve("a", (0,), 6 * GIB)
    ledger.reserve("b", (1,), 7 * GIB)
    ledger.reserve("c", (1,), 7 * GIB)
    measured = await meter.measure(ledger, {"a": (19,), "b": (17, 18), "c": (), "gone": (19,)})
    assert measured.engine_bytes == {"b": 5 * GIB, "c": 0}
    on_gpu, on_cpu = (device.others_bytes // GIB for device in measured.usage)
    assert on_gpu == 8 - 6
    assert on_cpu == 16 - (1 + 2) - 2 - 4, "engines, what they are forked from, the warm tier"


async def test_others_never_take_less_than_nothing(meter: MemoryMeter) -> None:
    ledger = Ledger(meter.devices)
    ledger.reserve("a", (0,), 10 * GIB)  # reserved, and not allocated yet
    measured = await meter.measure(ledger, {})
    assert measured.usage[0].others_bytes == 0
