"""The device of an engine: opening it, how many threads suit it, and its numerics class.

Owns the questions put to the machine (``/proc/cpuinfo``, torch's capabilities); decides nothing
else.
"""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from neuron.hardware.host import cpu_quota
from neuron.models.errors import LoadCode, LoadError

CPUINFO = Path("/proc/cpuinfo")
TINY_BYTES = 16 << 20
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def open_device(name: str) -> torch.device:
    """Opens the device *name*, ready to use. Raises LoadError UNSUPPORTED if it does not exist."""
    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) < count:
            torch.cuda.set_device(device)
            torch.zeros(1, device=device)  # fails now rather than at the first weight
        elif device.type != "cpu":
            raise RuntimeError("it does not exist")
    except torch.OutOfMemoryError:
        raise  # says nothing about the device
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"Device {name!r} cannot be used: {reason}. "
            f"This machine has cpu and {count} CUDA devices (cuda:0 …); choose one of them.",
        ) from error
    return device


def torch_dtype(name: str) -> torch.dtype:
    """Maps ``float32``, ``bfloat16`` or ``float16`` to torch's dtype."""
    return _DTYPES[name]


def default_threads(
    weight_bytes: int,
    cpuinfo: Path = CPUINFO,
    *,
    ranks: int = 1,
    quota: Callable[[], float | None] = cpu_quota,
) -> int:
    """The number of compute threads: the physical cores that this process may use, by its affinity
    and its containers' *quota*.

    Several *ranks* divide them. Hyperthreads do not count, as they slow matrix products down. A
    model below :data:`TINY_BYTES` gets one thread: waking a second one takes longer than its share
    of the work, and many times longer while something else keeps a core busy.
    """
    if weight_bytes < TINY_BYTES:
        return 1
    allowed = os.sched_getaffinity(0)
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    cores: set[tuple[str, str]] = set()
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if "core id" in fields and int(fields.get("processor", "-1")) in allowed:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
    count = len(cores) or len(allowed)
    if (limit := quota()) is not None:
        count = min(count, int(limit))  # more of them would stand still for a part of each period
    return max(1, count // ranks)


def numerics(device: torch.device, dtype: torch.dtype, path: str) -> str:
    """A text that is equal on engines whose logits are bit-identical (see ``Ready``)."""
    try:
        own = version("cortex-fleet")
    except PackageNotFoundError:
        own = "source"
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device).replace(" ", "-")
    else:
        capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-")
        kind = f"cpu-{platform.machine()}-{capability}-{torch.get_num_threads()}t"
    name = str(dtype).removeprefix("torch.")
    return f"cortex-{own} torch-{torch.__version__} {kind} {name} {path}"
