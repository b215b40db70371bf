"""Books of this node's devices: which model holds how much memory. Pure: sizes in, answers out.

A model's memory is reserved before its load begins and released when its process is gone, so that
no two loads count on the same bytes. Memory that others take (the desktop, another program) is
measured and is not for models; as it may grow while models are loaded, free room can become
negative.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from protocol.fleet import Device, DeviceKind


class Held(NamedTuple):
    """The memory that one model holds."""

    devices: tuple[int, ...]
    """Positions in the node's list of devices."""
    bytes_each: int


class Ledger:
    """The books of one node's devices."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._others = [0] * len(devices)
        self._held: dict[str, Held] = {}

    def others_take(self, sizes: Sequence[int]) -> None:
        """Records the measured bytes that other programs take of each device."""
        self._others = list(sizes)

    def all_held(self) -> dict[str, Held]:
        """The memory that each model holds."""
        return dict(self._held)

    def reserve(self, model: str, devices: tuple[int, ...], bytes_each: int) -> None:
        """Reserves memory for a model. The caller has checked that it fits."""
        assert model not in self._held, f"{model} is entered already"
        self._held[model] = Held(devices, bytes_each)

    def release(self, model: str) -> None:
        """Releases a model's memory, once its process is gone."""
        del self._held[model]

    def usable(self, device: int) -> int:
        """Bytes of a device that all models together may take."""
        found = self._devices[device]
        return min(found.budget_bytes, found.memory_bytes - self._others[device])

    def room(self, device: int) -> int:
        """Bytes of a device that are usable and not reserved."""
        return self.usable(device) - self._reserved(device)

    def fits(self, devices: Sequence[int], bytes_each: int) -> bool:
        """Whether a model could be loaded on *devices* now."""
        there = range(len(self._devices))
        return all(d in there and self.room(d) >= bytes_each for d in devices)

    def choose(self, count: int, bytes_each: int) -> tuple[int, ...]:
        """The *count* devices on which a model leaves the least room; empty if it fits nowhere."""
        able = [i for i, device in enumerate(self._devices) if device.budget_bytes]
        ways = [way for way in itertools.combinations(able, count) if self.fits(way, bytes_each)]
        return min(ways, key=lambda way: sum(map(self.room, way)), default=())

    def most_room(self) -> int:
        """Room on the device that has the most."""
        return max((self.room(i) for i, d in enumerate(self._devices) if d.budget_bytes), default=0)

    def name(self, device: int) -> str:
        """The device's name in an engine's settings: ``cpu`` or ``cuda:N``."""
        found = self._devices[device]
        return "cpu" if found.kind is DeviceKind.CPU else f"cuda:{found.index}"

    def _reserved(self, device: int) -> int:
        return sum(held.bytes_each for held in self._held.values() if device in held.devices)


def with_budgets(
    devices: Sequence[Device], wanted: str, memory_mb: int, share: float, host_cache_bytes: int = 0
) -> tuple[Device, ...]:
    """Sets on each of *devices* how much models may take of it.

    *wanted* is ``auto`` (all GPUs, else the CPU), ``cpu`` or ``cuda:N``. The budget is *memory_mb*
    per device, or *share* of its memory when that is 0. *host_cache_bytes* of the host's memory are
    taken already.
    """
    has_gpu = any(device.kind is DeviceKind.CUDA for device in devices)

    def budget(device: Device) -> int:
        name = "cpu" if device.kind is DeviceKind.CPU else f"cuda:{device.index}"
        is_usual = (device.kind is DeviceKind.CUDA) == has_gpu
        if wanted != name and not (wanted == "auto" and is_usual):
            return 0
        asked = memory_mb << 20
        there = device.memory_bytes - (host_cache_bytes if device.kind is DeviceKind.CPU else 0)
        return max(0, min(asked or int(share * device.memory_bytes), there))

    return tuple(msgspec.structs.replace(d, budget_bytes=budget(d)) for d in devices)
