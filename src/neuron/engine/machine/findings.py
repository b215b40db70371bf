"""What was found out on this machine by trying kernels, in a form that later loads can rely on.

A probe's answer depends on the processor, torch, this project's version, the number of threads, the
dtype and the shapes. All of them are in the key, so that whatever has changed is tried anew. Who
keeps findings, and for how long, is the service's business (``neuron/files/kernel_findings.py``).
"""

import hashlib
from collections.abc import Iterable

import torch

from neuron.engine.machine.device import numerics
from neuron.engine.machine.kernel_probe import KernelPath
from neuron.hardware.host import cpu_flags, cpu_model
from neuron.ipc.messages import Findings
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
    parts = (numerics(device, dtype, ""), cpu_model(), sorted(cpu_flags()), wish)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def as_findings(path: KernelPath, padded_rows: int) -> Findings:
    """Packs what was found up."""
    linear = path.linear
    return Findings(linear.kernel, linear.least_rows, path.exact, padded_rows, path.notes)


def as_path(found: Findings) -> KernelPath:
    """The kernels that were found to work."""
    plan = LinearPlan(Kernel(found.kernel), found.least_rows)
    return KernelPath(plan, reference=False, exact=found.exact, notes=found.notes)
