"""What a decoder can differ in, as plain data.

The vocabulary between ``families.py``, which knows who has which trait, and ``decoder.py``, which
computes them. Torch-free; must not know config.json.
"""

from enum import StrEnum

import msgspec

from neuron.models.errors import unsupported


class Activation(StrEnum):
    """The functions between the projections of the MLP, by their name in config.json."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


def parse_activation(name: str) -> Activation:
    """The activation called *name*. Raises LoadError UNSUPPORTED for any other."""
    try:
        return Activation(name)
    except ValueError:
        raise unsupported(
            f"its activation is {name!r}", f"Supported: {', '.join(Activation)}."
        ) from None


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What sets a family's decoder apart; the defaults are Llama's."""

    activation: Activation = Activation.SILU
    qkv_bias: bool = False
    output_bias: bool = False
    """Whether attention's output projection adds a bias."""
    mlp_bias: bool = False
    head_norms: bool = False
    """Whether query and key heads are normalised before they are rotated."""
    offset_norms: bool = False
    """Whether the norms' weights are stored as their distance from one."""
    sandwich_norms: bool = False
    """Whether attention and MLP have a norm behind them too, not only before."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by the root of the hidden size."""
    attention_scale: float | None = None
    """The factor of the attention scores; None: ``head_dim ** -0.5``."""
    logit_cap: float | None = None
    """Logits are squeezed into ± this value; None: they stay as they are."""
