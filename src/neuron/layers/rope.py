"""The parameters of a rotary position embedding, as plain data.

No torch, because configs are parsed without it; ``rotary.py`` computes the frequencies.
"""

from enum import StrEnum

import msgspec


class RopeType(StrEnum):
    """The supported ways to scale rotary positions to longer contexts."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


class Rope(msgspec.Struct, frozen=True):
    """Rotary parameters with every default resolved; fields that a type ignores stay unset."""

    type: RopeType = RopeType.DEFAULT
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    """Positions the model was trained on before the scaling (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Scale of cos and sin (yarn); 1.0 for other types."""
    truncate: bool = True
    """Whether yarn rounds its correction range to whole dimensions."""
