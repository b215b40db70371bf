"""The hardware of this node: which devices it has, and their current state.

Owns NVML (GPUs, through nvidia-ml-py); CPU and memory belong to ``host``. Nothing here raises: a
broken driver, or a card that fell off the bus, costs that device and never the node; it is logged
once, when it begins. Must not know torch, models or the bus.

A GPU's index is its CUDA ordinal, provided that CUDA counts as NVML does, by PCI bus address: where
cards differ, processes that compute need ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
"""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

from neuron.hardware.host import CGROUP, PROC, Host
from protocol.fleet import Device, DeviceKind, DeviceUsage

log = logging.getLogger("neuron")

T = TypeVar("T")

_ORDINAL = re.compile(r"\+?([0-9]+)")
"""Parses numbers as CUDA and C do: what follows the digits is ignored."""


class Hardware:
    """The devices that this node may use."""

    def __init__(
        self,
        *,
        visible_devices: str | None,
        nvml: "Nvml | None" = None,
        proc: Path = PROC,
        cgroup: Path = CGROUP,
    ) -> None:
        """*visible_devices* is CUDA_VISIBLE_DEVICES; *nvml* is the module ``pynvml``."""
        self._visible_devices = visible_devices
        self._given_nvml = nvml
        self._nvml: Nvml | None = None
        self._host = Host(proc, cgroup)
        self._cards: dict[int, _Card] = {}
        self._troubles: set[str] = set()

    def discover(self) -> tuple[Device, ...]:
        """The visible GPUs by CUDA ordinal, then the CPU."""
        nvml = self._nvml or self._open()
        if nvml is None:
            return (self._cpu(),)
        cards, mistake = visible(self._visible_devices, self._all_cards(nvml))
        if mistake:
            self._begins("visible", logging.WARNING, f"CUDA_VISIBLE_DEVICES: {mistake}")
        self._cards = dict(enumerate(cards))
        driver = _text(_ask(nvml.nvmlSystemGetDriverVersion))
        gpus = [self._gpu(nvml, index, card, driver) for index, card in self._cards.items()]
        return (*gpus, self._cpu())

    def usage(self, devices: Sequence[Device]) -> tuple[DeviceUsage, ...]:
        """The current state of *devices*. A card that does not answer has no free memory."""
        nvml = self._nvml
        return tuple(
            self._cpu_usage(device)
            if device.kind is DeviceKind.CPU
            else self._gpu_usage(nvml, device)
            for device in devices
        )

    def close(self) -> None:
        """Shuts NVML down; GPUs no longer answer."""
        nvml, self._nvml = self._nvml, None
        self._cards = {}
        if nvml is not None:
            _ask(nvml.nvmlShutdown)

    # -- the CPU -------------------------------------------------------------------------------

    def _cpu(self) -> Device:
        return Device(DeviceKind.CPU, 0, self._host.cpu_name(), self._host.memory_bytes())

    def _cpu_usage(self, device: Device) -> DeviceUsage:
        return DeviceUsage(device.kind, device.index, self._host.memory_free_bytes())

    # -- GPUs ----------------------------------------------------------------------------------

    def _open(self) -> "Nvml | None":
        """Initializes NVML; None without a driver, or when no GPU may be used anyway."""
        if self._visible_devices is not None and self._visible_devices.strip() in ("", "-1"):
            return None
        try:
            nvml = self._given_nvml or _import_nvml()
        except Exception as error:
            self._begins("nvml", logging.INFO, f"no GPUs: nvidia-ml-py does not work ({error})")
            return None
        try:
            nvml.nvmlInit()
        except Exception as error:
            absent = _code(error) == nvml.NVML_ERROR_LIBRARY_NOT_FOUND
            level = logging.INFO if absent else logging.WARNING
            self._begins("nvml", level, f"no GPUs: the NVIDIA driver does not answer ({error})")
            return None
        self._ended("nvml", "the NVIDIA driver answers")
        self._nvml = nvml
        return nvml

    def _all_cards(self, nvml: "Nvml") -> list["_Card"]:
        """The cards that respond, in NVML's order."""
        cards = []
        for number in range(_ask(nvml.nvmlDeviceGetCount) or 0):
            key = f"GPU {number} of NVML"
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                uuid = _text(nvml.nvmlDeviceGetUUID(handle))
                memory = self._memory(nvml, handle)
            except Exception as error:
                self._begins(
                    key, logging.WARNING, f"{key} does not answer and is not used: {error}"
                )
                continue
            self._ended(key, f"{key} answers again")
            cards.append(_Card(handle, uuid, memory.total))
        return cards

    def _gpu(self, nvml: "Nvml", index: int, card: "_Card", driver: str) -> Device:
        capability = _ask(nvml.nvmlDeviceGetCudaComputeCapability, card.handle)
        return Device(
            DeviceKind.CUDA,
            index,
            _text(_ask(nvml.nvmlDeviceGetName, card.handle)) or "NVIDIA GPU",
            card.memory_bytes,
            uuid=card.uuid,
            compute_capability="{}.{}".format(*capability) if capability else "",
            driver=driver,
        )

    def _gpu_usage(self, nvml: "Nvml | None", device: Device) -> DeviceUsage:
        card = self._cards.get(device.index)
        if nvml is None or card is None:
            return DeviceUsage(device.kind, device.index, 0)
        key = f"cuda:{device.index}"
        try:
            free = self._memory(nvml, card.handle).free
        except Exception as error:
            self._begins(key, logging.ERROR, f"{key} ({device.name}) does not answer: {error}")
            return DeviceUsage(device.kind, device.index, 0)
        self._ended(key, f"{key} answers again")
        rates = _ask(nvml.nvmlDeviceGetUtilizationRates, card.handle)
        milliwatts = _ask(nvml.nvmlDeviceGetPowerUsage, card.handle)
        return DeviceUsage(
            device.kind,
            device.index,
            free,
            utilisation_percent=None if rates is None else rates.gpu,
            temperature_celsius=_ask(
                nvml.nvmlDeviceGetTemperature, card.handle, nvml.NVML_TEMPERATURE_GPU
            ),
            power_watts=None if milliwatts is None else milliwatts / 1000,
        )

    def _memory(self, nvml: "Nvml", handle: object) -> "_Memory":
        """Total and free memory. Raises what NVML raises for a card that does not answer."""
        try:
            info = nvml.nvmlDeviceGetMemoryInfo(handle)
        except Exception as error:
            if _code(error) != nvml.NVML_ERROR_NOT_SUPPORTED:
                raise
            # GPUs without memory of their own (GB10, Jetson) use the host's.
            return _Memory(self._host.memory_bytes(), self._host.memory_free_bytes())
        return _Memory(info.total, info.free)

    def _begins(self, key: str, level: int, message: str) -> None:
        if key not in self._troubles:
            self._troubles.add(key)
            log.log(level, message)

    def _ended(self, key: str, message: str) -> None:
        if key in self._troubles:
            self._troubles.discard(key)
            log.info(message)


class _Card(NamedTuple):
    """One GPU, as NVML sees it."""

    handle: object
    uuid: str
    memory_bytes: int


class _Memory(NamedTuple):
    """A device's memory in bytes."""

    total: int
    free: int


def visible(wanted: str | None, cards: Sequence[_Card]) -> tuple[list[_Card], str]:
    """The cards that CUDA_VISIBLE_DEVICES = *wanted* allows, in its order, and its mistake if any.

    Follows CUDA: entries are numbers or UUID prefixes, whichever the first one is; an entry that
    matches no card ends the list; a card that is named twice hides all of them.
    """
    if wanted is None:
        return list(cards), ""
    entries = [entry.strip() for entry in wanted.split(",")]
    find = _by_uuid if entries[0].startswith("GPU-") else _by_number
    chosen: list[_Card] = []
    for entry in entries:
        card = find(entry, cards)
        if card is None and (not entry or entry.startswith("-")):
            break  # the usual way to end the list
        if card is None:
            return (
                chosen,
                f"{entry!r} matches none of {len(cards)} GPUs, so CUDA ignores it and all after it",
            )
        if card in chosen:
            return [], f"{entry!r} is listed twice, so CUDA hides all GPUs"
        chosen.append(card)
    return chosen, ""


def _by_number(entry: str, cards: Sequence[_Card]) -> _Card | None:
    match = _ORDINAL.match(entry)
    number = int(match[1]) if match else len(cards)
    return cards[number] if number < len(cards) else None


def _by_uuid(entry: str, cards: Sequence[_Card]) -> _Card | None:
    """The card whose UUID begins with *entry*; None if several do."""
    if not entry.startswith("GPU-"):
        return None
    fitting = [card for card in cards if card.uuid.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def _ask(function: Callable[..., T], *arguments: object) -> T | None:
    """What a device reports; None when it does not, for whatever reason.

    Catches more than NVMLError: the binding also fails to decode names and to find functions.
    """
    try:
        return function(*arguments)
    except Exception:
        return None


def _code(error: Exception) -> object:
    """The error number of an NVMLError."""
    return getattr(error, "value", None)


def _text(value: str | bytes | None) -> str:
    """*value* as text; older bindings return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _import_nvml() -> "Nvml":
    import pynvml

    return cast("Nvml", pynvml)


class _MemoryInfo(Protocol):
    total: int
    free: int


class _Rates(Protocol):
    gpu: int


class Nvml(Protocol):
    """The part of nvidia-ml-py's module ``pynvml`` in use; every call may raise NVMLError."""

    NVML_TEMPERATURE_GPU: int
    NVML_ERROR_NOT_SUPPORTED: int
    NVML_ERROR_LIBRARY_NOT_FOUND: int

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str | bytes: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object: ...
    def nvmlDeviceGetName(self, handle: object, /) -> str | bytes: ...
    def nvmlDeviceGetUUID(self, handle: object, /) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> _MemoryInfo: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: object, /) -> tuple[int, int]: ...
    def nvmlDeviceGetUtilizationRates(self, handle: object, /) -> _Rates: ...
    def nvmlDeviceGetTemperature(self, handle: object, sensor: int, /) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: object, /) -> int: ...  # milliwatts
