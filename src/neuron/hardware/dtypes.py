"""The dtypes that a model can be computed in, chosen from names and this CPU's flags; no torch.

Owns what the engine and the estimate before a load must agree on. Must not know models.
"""

from collections.abc import Mapping
from types import MappingProxyType

from neuron.hardware.host import computes_bfloat16, cpu_flags
from neuron.models.errors import LoadCode, LoadError

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
"""Bytes per number, for each dtype that a model can be computed in."""
STORED: Mapping[str, str] = MappingProxyType(
    {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
)
"""The dtype names of config.json, by those of safetensors."""

_PACKED_BF16 = (frozenset(("avx512bw", "avx512vl", "avx512dq")), frozenset(("avx_ne_convert",)))
_PACKED_F16 = (frozenset(("avx512_fp16",)), frozenset(("avx_ne_convert",)))


def chosen(asked: str, stored: str, *, cpu: bool, exceeds_float16: bool = False) -> str:
    """The dtype to compute in. *asked* is ``Start.dtype``; *stored* is the checkpoint's own.

    ``auto`` keeps the checkpoint's dtype, except on a *cpu* that can only emulate it: that computes
    in float32; and except float16 where the model's activations *exceed* it. Raises
    :class:`LoadError` UNSUPPORTED for an unknown dtype, and for float16 in that case.
    """
    name = stored if asked == "auto" else asked
    name = STORED.get(name, name)
    if name not in ITEM_BYTES:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"dtype {name!r} is not supported. Use auto, float32, bfloat16 or float16.",
        )
    if name == "float16" and exceeds_float16:
        if asked != "auto":
            raise LoadError(
                LoadCode.UNSUPPORTED,
                "This model cannot be computed in float16: its activations exceed that dtype's "
                "largest number, 65,504, so that it would answer nothing. Use bfloat16, float32 or "
                "auto.",
            )
        name = "float32" if cpu else "bfloat16"
    if asked == "auto" and cpu:
        return name if name == "bfloat16" and computes_bfloat16() else "float32"
    return name


def packs(dtype: str) -> bool:
    """Whether torch has packed matrices of *dtype* on this CPU, by oneDNN's rules.

    This predicts what the engine will find when it tries (``engine/machine/kernel_probe.py``).
    """
    if dtype == "float32":
        return True
    ways = _PACKED_BF16 if dtype == "bfloat16" else _PACKED_F16
    flags = set(cpu_flags())
    return any(way <= flags for way in ways)
