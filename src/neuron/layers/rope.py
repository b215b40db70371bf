"""The parameters of a rotary position embedding, as plain data.

Torch-free: configs are parsed without torch; ``rotary.py`` turns this into frequencies.
"""

from enum import StrEnum

import msgspec


class RopeType(StrEnum):
    """The supported ways to stretch rotary positions over longer contexts."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


class Rope(msgspec.Struct, frozen=True):
    """Rotary parameters with every default resolved; a field that a type ignores is unset."""

    type: RopeType = RopeType.DEFAULT
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    """Positions the model was trained on before the stretch (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Scale of cos and sin (yarn); 1.0 elsewhere."""
    truncate: bool = True
    """Whether yarn rounds its correction range to whole dimensions."""
