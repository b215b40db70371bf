"""Measures who takes how much of this node's devices: engines on a CPU, models, and others.

Owns the arithmetic between what the hardware reports and what the ledger holds. Must not know
residents or the bus, and changes nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from neuron.files.warm_tier import WarmTier
from neuron.hardware.discovery import Hardware
from neuron.hardware.host import private_bytes
from neuron.sizing.ledger import Held, Ledger
from protocol.fleet import Device, DeviceKind, DeviceUsage


class Measured(NamedTuple):
    """The node's memory at one moment."""

    usage: tuple[DeviceUsage, ...]
    """Each device's, in the node's order."""
    engine_bytes: dict[str, int]
    """What the engine of each model on a CPU takes, by model."""


class MemoryMeter:
    """Reads the memory of devices and of engine processes."""

    def __init__(self, hardware: Hardware, devices: tuple[Device, ...], warm: WarmTier) -> None:
        self.devices = devices
        """The node's devices, with what models may take of each."""
        self._hardware = hardware
        self._warm = warm

    def measure(self, ledger: Ledger, pids: Mapping[str, tuple[int, ...]]) -> Measured:
        """Reads what is taken now. *pids*: the engine processes of each model. An engine on a CPU
        is measured; on a GPU it is taken at its word. Runs in a thread, because NVML can hang for
        seconds."""
        sizes = {
            model: sum(map(private_bytes, pids[model]))
            for model, held in ledger.all_held().items()
            if model in pids and self._is_on_cpu(held)
        }
        own = self._own_bytes(ledger, sizes)
        now = self._hardware.usage(self.devices)
        usage = []
        for device, there, own_bytes in zip(self.devices, now, own, strict=True):
            others = device.memory_bytes - there.memory_free_bytes - own_bytes
            usage.append(msgspec.structs.replace(there, others_bytes=max(0, others)))
        return Measured(tuple(usage), sizes)

    def _own_bytes(self, ledger: Ledger, sizes: Mapping[str, int]) -> list[int]:
        """What models and the warm tier take of each device."""
        own = [0] * len(self.devices)
        for model, held in ledger.all_held().items():
            for device in held.devices:
                own[device] += sizes.get(model, 0) if self._is_on_cpu(held) else held.bytes_each
        locked = sum(self._warm.held.values())
        return [
            size + (locked if device.kind is DeviceKind.CPU else 0)
            for device, size in zip(self.devices, own, strict=True)
        ]

    def _is_on_cpu(self, held: Held) -> bool:
        return self.devices[held.devices[0]].kind is DeviceKind.CPU
