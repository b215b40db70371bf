"""Measures who takes how much of this node's devices: engines on a CPU, models, and others.

Owns the arithmetic between what the hardware reports and what the ledger holds. Must not know
residents or the bus, and changes nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import msgspec

from neuron.files.warm_tier import WarmTier
from neuron.hardware.discovery import Hardware
from neuron.hardware.host import shared_out_bytes, written_bytes
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

    def __init__(
        self,
        hardware: Hardware,
        devices: tuple[Device, ...],
        warm: WarmTier,
        helpers: Callable[[], tuple[int, ...]] = tuple,
    ) -> None:
        """*helpers*: processes that belong to the node's models, whether or not it is known to
        which; those that engines share memory with are among them."""
        self.devices = devices
        """The node's devices, with what models may take of each."""
        self._hardware = hardware
        self._warm = warm
        self._helpers = helpers

    async def measure(self, ledger: Ledger, pids: Mapping[str, tuple[int, ...]]) -> Measured:
        """Reads what is taken now, in a thread, because NVML can hang for seconds. *pids*: the
        engine processes of each model. An engine on a CPU is measured; on a GPU it is taken at its
        word."""
        return await asyncio.to_thread(self._measure, ledger, pids, self._helpers())

    def _measure(
        self, ledger: Ledger, pids: Mapping[str, tuple[int, ...]], helpers: Iterable[int]
    ) -> Measured:
        on_cpu = {
            model: pids[model]
            for model, held in ledger.all_held().items()
            if model in pids and self._is_on_cpu(held)
        }
        sizes = {model: sum(map(written_bytes, engine)) for model, engine in on_cpu.items()}
        own = self._own_bytes(ledger, {*helpers, *chain.from_iterable(on_cpu.values())})
        now = self._hardware.usage(self.devices)
        usage = []
        for device, there, own_bytes in zip(self.devices, now, own, strict=True):
            others = device.memory_bytes - there.memory_free_bytes - own_bytes
            usage.append(msgspec.structs.replace(there, others_bytes=max(0, others)))
        return Measured(tuple(usage), sizes)

    def _own_bytes(self, ledger: Ledger, on_cpu: Iterable[int]) -> list[int]:
        """What models and the warm tier take of each device. *on_cpu*: processes there, of which
        what they share counts once."""
        own = [0] * len(self.devices)
        for held in ledger.all_held().values():
            for device in held.devices if not self._is_on_cpu(held) else ():
                own[device] += held.bytes_each
        of_host = sum(self._warm.held.values()) + sum(map(shared_out_bytes, on_cpu))
        return [
            size + (of_host if device.kind is DeviceKind.CPU else 0)
            for device, size in zip(self.devices, own, strict=True)
        ]

    def _is_on_cpu(self, held: Held) -> bool:
        return self.devices[held.devices[0]].kind is DeviceKind.CPU
