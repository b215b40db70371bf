"""The ways in which decoders can differ, as plain data.

Connects ``families.py``, which knows the traits of each family, and ``decoder.py``, which computes
them. No torch; must not know config.json.
"""

from enum import StrEnum

import msgspec

from neuron.models.errors import unsupported


class Activation(StrEnum):
    """The MLP's activation functions, by their names in config.json."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


def parse_activation(name: str) -> Activation:
    """The activation called *name*. Raises LoadError UNSUPPORTED for an unknown one."""
    try:
        return Activation(name)
    except ValueError:
        raise unsupported(
            f"its activation is {name!r}", f"Supported: {', '.join(Activation)}."
        ) from None


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """The differences between families' decoders; the defaults are Llama's."""

    activation: Activation = Activation.SILU
    qkv_bias: bool = False
    output_bias: bool = False
    """Whether attention's output projection adds a bias."""
    mlp_bias: bool = False
    head_norms: bool = False
    """Whether query and key heads are normalised before rotation."""
    offset_norms: bool = False
    """Whether the norms' weights are stored as their distance from one."""
    sandwich_norms: bool = False
    """Whether attention and MLP also have a norm after them, not only before."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    attention_scale: float | None = None
    """Factor of the attention scores; None = ``head_dim ** -0.5``."""
    logit_cap: float | None = None
    """Logits are soft-capped at ± this value; None = not capped."""
    exceeds_float16: bool = False
    """Whether its activations exceed the range of float16, so that it computes infinities there."""
