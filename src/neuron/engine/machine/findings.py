"""What was found out on this machine by trying kernels, in a form that later loads can rely on.

A probe's answer depends on the processor, torch, this project's version, the number of threads, the
dtype and the shapes. All of them are in the key, so that whatever has changed is tried anew. Who
keeps findings, and for how long, is the service's business (``neuron/files/kernel_findings.py``).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from neuron.engine.machine import kernel_probe
from neuron.engine.machine.device import numerics
from neuron.engine.machine.kernel_probe import KernelPath
from neuron.hardware.host import cpu_flags, cpu_model
from neuron.ipc.messages import Findings
from neuron.layers import attention, linear, tiles
from neuron.layers.linear import Kernel, LinearPlan
from neuron.models.config import ModelConfig


def findings_key(
    config: ModelConfig,
    shapes: Iterable[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    exact: bool | None,
) -> str:
    """Equal where the probes would answer the same. *shapes*: of the model's linear maps."""
    heads = (config.heads, config.kv_heads, config.head_dim, sorted(set(map(str, config.windows))))
    wish = ("auto" if exact is None else exact, sorted(set(shapes)), heads, config.layers)
    parts = (numerics(device, dtype, ""), cpu_model(), sorted(cpu_flags()), wish, _code())
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _code() -> list[tuple[str, int, int]]:
    """Tells the versions of the modules that are tried apart, also in a checkout."""
    files = [Path(module.__file__ or "") for module in (attention, linear, tiles, kernel_probe)]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def as_findings(path: KernelPath, padded_rows: int) -> Findings:
    """Packs what was found up."""
    plan = path.linear
    return Findings(plan.kernel, plan.least_rows, path.exact, padded_rows, path.notes)


def as_path(found: Findings) -> KernelPath:
    """The kernels that were found to work."""
    plan = LinearPlan(Kernel(found.kernel), found.least_rows)
    return KernelPath(plan, reference=False, exact=found.exact, notes=found.notes)
