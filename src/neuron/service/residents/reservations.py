"""The memory of this node's residents: reserved before a load, released when its process is gone.

Owns the ledger. Where a model does not fit, the victims that its order names are taken down one by
one, and only until what is measured is enough. One load makes room at a time, so that no two count
on the same bytes. What a load took, in seconds and in bytes, is noted for the next estimate.

Must not know residents, engines or the bus: whoever loads a model enters :meth:`reserve` and
stays inside for as long as the model's process lives.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from neuron.files.warm_tier import WarmTier
from neuron.service.residents.memory_meter import Measured
from neuron.service.residents.offers import Offer, Offers
from neuron.sizing.estimate import beside_kv
from neuron.sizing.ledger import Held, Ledger
from protocol.errors import ErrorCode, FleetError
from protocol.fleet import Device, DeviceUsage, Estimate
from protocol.orders import LoadOrder, Victim
from protocol.runtime.sizes import size_text

NO_ROOM_SECONDS = 3.0
"""Until a load that found no memory is worth another try."""

Evict = Callable[[Victim, str], Awaitable[None]]
"""Takes a victim down for the model that is named second, and returns when its memory is released;
does nothing when the victim is not here."""
OnEviction = Callable[[int, int], None]
"""Is told before each victim goes: how many have gone, and how many may have to."""


class Meter(Protocol):
    """Reads how much memory is taken; the shape of ``MemoryMeter``."""

    devices: tuple[Device, ...]

    async def measure(self, ledger: Ledger, pids: Mapping[str, tuple[int, ...]]) -> Measured:
        """Reads what is taken now."""
        ...


class NoRoom(FleetError):
    """Raised when the memory that was expected to be free is not. *is_shown*: an operator asked
    for the load and must see why it failed; the placer tries something else."""

    def __init__(self, message: str, *, is_shown: bool) -> None:
        super().__init__(
            ErrorCode.MODEL_UNAVAILABLE, message, retry_after_seconds=round(NO_ROOM_SECONDS)
        )
        self.is_shown = is_shown


@dataclass(eq=False)
class Reservation:
    """Memory that is reserved for one model."""

    devices: tuple[int, ...]
    """Positions in the node's list."""
    ranks: tuple[str, ...]
    """The device of each of the engine's processes, as engines name it; several can share a
    CPU."""
    estimate: Estimate
    load_number: int
    """How many loads this node has begun, this one included."""
    pids: tuple[int, ...] = ()
    """The engine's processes while it runs, so that they can be measured."""

    @property
    def kv_bytes(self) -> int | None:
        """KV cache of each rank; None = the engine chooses."""
        return self.estimate.kv_bytes * len(self.devices) // len(self.ranks) or None


class Reservations:
    """Reserves memory for loads, and releases it."""

    def __init__(
        self, node: str, offers: Offers, meter: Meter, warm: WarmTier, evict: Evict
    ) -> None:
        """*node* is named in errors; *warm* drops a model's pages when its load is over."""
        self._node = node
        self._offers = offers
        self._meter = meter
        self._warm = warm
        self._evict = evict
        self._ledger = Ledger(meter.devices)
        self._granted: dict[str, Reservation] = {}
        self._lock = asyncio.Lock()
        self.loads = 0
        """How many loads have begun since the node started."""
        self.usage: tuple[DeviceUsage, ...] = ()
        """Each device as it was last measured; empty before the first time."""

    def all_held(self) -> dict[str, Held]:
        """What each model holds, by model."""
        return self._ledger.all_held()

    @contextlib.asynccontextmanager
    async def reserve(
        self, order: LoadOrder, on_eviction: OnEviction
    ) -> AsyncIterator[Reservation]:
        """Holds memory for the order's model for the length of the block; takes the order's victims
        down for it where that is necessary. Raises :class:`NoRoom` when the model does not fit
        without them either, and ``FleetError`` for a model that cannot be loaded here."""
        async with self._lock:
            offer = await self._offers.appraise(order.model)
            if offer.error is not None:
                raise FleetError.of(offer.error)
            assert offer.estimate is not None, "its files are here"
            devices = await self._make_room(order, offer.estimate, on_eviction)
            reservation = self._grant(offer, offer.estimate, devices)
        try:
            yield reservation
        finally:
            self._release(order.model)

    async def measure(self) -> None:
        """Measures what others take of the devices, for the ledger and for the fleet, and what
        engines really take, for the next estimate."""
        pids = {model: reservation.pids for model, reservation in self._granted.items()}
        measured = await self._meter.measure(self._ledger, pids)
        self.usage = measured.usage
        self._ledger.others_take([device.others_bytes for device in measured.usage])
        for model, size in measured.engine_bytes.items():
            offer = self._offers.get(model)
            if size and offer is not None and offer.estimate is not None:
                self._offers.record_bytes(model, beside_kv(size, offer.estimate.kv_bytes))

    def loaded(self, model: str, seconds: float, expected_seconds: float) -> None:
        """Notes that a load of *model* is over, how long it took, and how long the next one
        will."""
        self._offers.record_load(model, seconds, expected_seconds)
        self._warm.drop(model)

    def _grant(self, offer: Offer, estimate: Estimate, devices: tuple[int, ...]) -> Reservation:
        names = tuple(map(self._ledger.name, devices))
        each = offer.profile.min_devices // len(devices)  # ranks; more than one on a CPU
        reservation = Reservation(devices, names * each, estimate, self.loads + 1)
        self._ledger.reserve(offer.model, devices, estimate.bytes_each)
        self._granted[offer.model] = reservation
        self.loads += 1
        return reservation

    def _release(self, model: str) -> None:
        del self._granted[model]
        self._ledger.release(model)

    async def _make_room(
        self, order: LoadOrder, estimate: Estimate, on_eviction: OnEviction
    ) -> tuple[int, ...]:
        """Finds the devices where a model fits, after as few victims as that takes."""
        victims = [victim for victim in order.victims if victim.model != order.model]
        for gone in range(len(victims) + 1):
            await self.measure()
            if devices := self._devices_for(order, estimate):
                return devices
            if gone < len(victims):
                on_eviction(gone, len(victims))
                await self._evict(victims[gone], order.model)
        raise self._no_room(order, estimate)

    def _devices_for(self, order: LoadOrder, estimate: Estimate) -> tuple[int, ...]:
        if len(order.devices) != estimate.devices:  # any, or meant for an older profile
            return self._ledger.choose(estimate.devices, estimate.bytes_each)
        fits = self._ledger.fits(order.devices, estimate.bytes_each)
        return order.devices if fits else ()

    def _no_room(self, order: LoadOrder, estimate: Estimate) -> NoRoom:
        room = self._ledger.most_room()
        held = ", ".join(
            f"{name} {size_text(held.bytes_each)}" for name, held in self.all_held().items()
        )
        return NoRoom(
            f"{order.model} takes {size_text(estimate.bytes_each)} on {self._node}, and "
            f"{size_text(room)} are free ({held or 'no model is loaded'}). Unload a model, or give "
            "models more memory (memory_mb).",
            is_shown=order.epoch is None,
        )
