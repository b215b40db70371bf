"""What a model would take on this node: its profile, the node's settings and its files, together.

The arithmetic is ``neuron.sizing.estimate``'s.
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
    """None when it is not known without the files. *took*: what it has been seen to take beside its
    KV cache; 0 = not loaded yet. Raises ``LoadError`` for a model that no engine here can run. Runs
    in a thread."""
    said, ranks = profile.vram_mb << 20, profile.min_devices
    kind, budget = _place(devices, ranks)
    spread = 1 if kind is DeviceKind.CPU else ranks  # devices; ranks on a CPU share it
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
    """The kind of device that is used, and what models may have of the smallest of the *ranks*
    largest ones; on a CPU, of all of it."""
    usable = sorted((d for d in devices if d.budget_bytes), key=lambda d: -d.budget_bytes)
    if not usable:
        raise LoadError(LoadCode.UNSUPPORTED, "This node has no device for models (device).")
    largest = usable[0]
    if largest.kind is DeviceKind.CPU:
        return largest.kind, largest.budget_bytes
    if len(usable) < ranks:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"The model shall be shared by {ranks} devices (min_devices), and this node has "
            f"{len(usable)}.",
        )
    return largest.kind, usable[ranks - 1].budget_bytes


def _as_said(said: int, devices: int, found: Estimate | None = None) -> Estimate:
    """The profile knows better what it takes."""
    line = f"{size_text(said)} in all: the profile's vram_mb"
    each = -(-said // devices)
    if found is None:
        return Estimate(each, devices, lines=(line,))
    return msgspec.structs.replace(found, bytes_each=each, lines=(*found.lines, line))
