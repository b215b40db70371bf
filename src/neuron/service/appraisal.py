"""What a model would take on this node: its profile, the node's settings and its files, together.

The arithmetic is ``neuron.estimate``'s.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from neuron.config import NeuronConfig
from neuron.estimate import Settings, estimate, size_text
from neuron.models.checkpoint import read_checkpoint
from neuron.models.config import load_config
from neuron.models.errors import LoadCode, LoadError
from protocol.catalogue import Profile
from protocol.fleet import Device, Estimate


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
    if profile.min_devices > 1:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"{profile.id} shall be shared by {profile.min_devices} devices (min_devices), which "
            "is not served yet.",
        )
    said = profile.vram_mb << 20
    if folder is None:
        return _as_said(said) if said else None
    usable = [device for device in devices if device.budget_bytes]
    largest = max(usable, key=lambda device: device.budget_bytes, default=None)
    if largest is None:
        raise LoadError(LoadCode.UNSUPPORTED, "This node has no device for models (device).")
    kv_mb = profile.kv_cache_mb or config.kv_cache_mb
    settings = Settings(
        kind=largest.kind,
        slots=profile.slots or config.slots,
        dtype=config.dtype if profile.dtype == "auto" else profile.dtype,
        max_context=profile.limit.context or config.max_context or None,
        kv_bytes=kv_mb << 20 if kv_mb else None,
    )
    available = said or largest.budget_bytes
    model, entries = load_config(folder), list(read_checkpoint(folder).values())
    found = estimate(model, entries, settings, available=available)
    if took > found.total_bytes - found.kv_bytes:
        found = estimate(model, entries, settings, available=available, measured_bytes=took)
    shown = Estimate(
        bytes_each=found.total_bytes,
        weight_bytes=found.weight_bytes,
        kv_bytes=found.kv_bytes,
        kv_tokens=found.kv_tokens,
        overhead_bytes=found.overhead_bytes,
        is_measured=took > 0,
        lines=found.lines(),
    )
    return _as_said(said, shown) if said else shown


def _as_said(said: int, found: Estimate | None = None) -> Estimate:
    """The profile knows better what it takes."""
    line = f"{size_text(said)} in all: the profile's vram_mb"
    if found is None:
        return Estimate(said, lines=(line,))
    return msgspec.structs.replace(found, bytes_each=said, lines=(*found.lines, line))
