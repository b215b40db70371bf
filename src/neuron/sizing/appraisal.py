"""Estimates a model's memory on this node from its profile, the node's settings and its files.

The arithmetic is in ``neuron.sizing.estimate``.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from neuron.config import NeuronConfig
from neuron.models.checkpoint import read_checkpoint
from neuron.models.config import load_config
from neuron.models.errors import LoadCode, LoadError
from neuron.models.sharding import check_ranks
from neuron.sizing.estimate import EstimateSettings, estimate
from neuron.sizing.model_settings import ModelSettings
from protocol.catalogue import Profile
from protocol.fleet import Device, DeviceKind, Estimate
from protocol.runtime.sizes import size_text


def appraise(
    folder: Path | None,
    profile: Profile,
    config: NeuronConfig,
    devices: Sequence[Device],
    took: int = 0,
) -> Estimate | None:
    """The model's estimated memory; None when it cannot be known without the files.

    *took* is the memory that was measured at an earlier load, without the KV cache; 0 = never
    loaded. Raises ``LoadError`` for a model that no engine here can run. Runs in a thread.
    """
    said, ranks = profile.vram_mb << 20, profile.min_devices
    kind, budget = _place(devices, ranks)
    spread = 1 if kind is DeviceKind.CPU else ranks  # devices: ranks on a CPU share it
    each = ranks // spread
    if folder is None:
        return _as_said(said, spread) if said else None
    settings = _estimate_settings(ModelSettings.resolve(profile, config), kind)
    available = said // ranks if said else budget // each
    model, entries = load_config(folder), list(read_checkpoint(folder).values())
    check_ranks(model, ranks)
    found = estimate(model, entries, settings, available=available)
    took //= each
    if took > found.total_bytes - found.kv_bytes:
        found = estimate(model, entries, settings, available=available, measured_bytes=took)
    lines = found.lines()
    if ranks > 1:
        lines += (f"each of {ranks} ranks, on {spread} device{'s' * (spread > 1)}",)
    shown = Estimate(
        bytes_each=found.total_bytes * each,
        devices=spread,
        weight_bytes=found.weight_bytes * each,
        kv_bytes=found.kv_bytes * each,
        kv_tokens=found.kv_tokens,
        overhead_bytes=found.overhead_bytes * each,
        is_measured=took > 0,
        lines=lines,
    )
    return _as_said(said, spread, shown) if said else shown


def _estimate_settings(settings: ModelSettings, kind: DeviceKind) -> EstimateSettings:
    return EstimateSettings(
        kind=kind,
        slots=settings.slots,
        dtype=settings.dtype,
        max_context=settings.max_context,
        kv_bytes=settings.kv_cache_bytes_each,
        ranks=settings.ranks,
    )


def _place(devices: Sequence[Device], ranks: int) -> tuple[DeviceKind, int]:
    """The kind of device to use, and the memory that models may take on one of them.

    On GPUs that is the budget of the smallest of the *ranks* largest ones; on a CPU, all of its
    budget.
    """
    usable = sorted((d for d in devices if d.budget_bytes), key=lambda d: -d.budget_bytes)
    if not usable:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            "No device of this node may be used for models. Set device in neuron.toml to auto, "
            "cpu or a GPU that it has.",
        )
    largest = usable[0]
    if largest.kind is DeviceKind.CPU:
        return largest.kind, largest.budget_bytes
    if len(usable) < ranks:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"The model must be shared by {ranks} devices (min_devices), but this node has "
            f"{len(usable)}. Lower min_devices, or load it on a node with {ranks} devices.",
        )
    return largest.kind, usable[ranks - 1].budget_bytes


def _as_said(said: int, devices: int, found: Estimate | None = None) -> Estimate:
    """The estimate with the profile's ``vram_mb``, which takes precedence."""
    line = f"{size_text(said)} in total: the profile's vram_mb"
    each = -(-said // devices)
    if found is None:
        return Estimate(each, devices, lines=(line,))
    return msgspec.structs.replace(found, bytes_each=each, lines=(*found.lines, line))
