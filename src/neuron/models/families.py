"""How the families differ: the keys that each reads from config.json, and what they mean.

Every family is the decoder of ``decoder.py`` with different :class:`Traits`. A class here is the
config of one family. Its fields are the keys that the family knows, with the defaults of the
transformers config class of the same name (as there, a family ignores the keys of others); its
methods say what the keys mean. To add a family, add a class and its line in :data:`FAMILIES`.

Must not know torch, files or weights.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import msgspec

from neuron.layers.rope import Rope
from neuron.models.errors import contradiction, unsupported
from neuron.models.ropeconfig import parse_rope
from neuron.models.traits import Traits, parse_activation
from neuron.models.windows import (
    FULL,
    SLIDING,
    Windows,
    patterned_types,
    typed_windows,
    upper_windows,
)


class Architecture(StrEnum):
    """The architectures that the engine can run, by their names in config.json."""

    LLAMA = "LlamaForCausalLM"
    MISTRAL = "MistralForCausalLM"
    QWEN2 = "Qwen2ForCausalLM"
    QWEN3 = "Qwen3ForCausalLM"
    GEMMA3 = "Gemma3ForCausalLM"
    GEMMA3_VISION = "Gemma3ForConditionalGeneration"
    """Gemma 3 with a vision tower, which is not loaded: text in, text out."""


class Keys(msgspec.Struct, kw_only=True):
    """The keys that all families read, with Llama's defaults; families override theirs."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    original_max_position_embeddings: int | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None

    def traits(self) -> Traits:
        """The model's traits. Raises LoadError UNSUPPORTED for what cannot be run."""
        return Traits(activation=parse_activation(self.hidden_act))

    def windows(self) -> Windows:
        """Per layer: how many positions back (itself included) a token sees; None = all."""
        return (None,) * self.num_hidden_layers

    def ropes(self) -> tuple[Rope, ...]:
        """Per layer: the rotary parameters."""
        parameters = self.rope_scaling or self.rope_parameters
        return (self._rope(parameters, self.rope_theta),) * self.num_hidden_layers

    def _rope(self, parameters: dict[str, Any] | None, theta: float | None) -> Rope:
        if self.partial_rotary_factor is not None:
            factor = {"partial_rotary_factor": self.partial_rotary_factor}
            parameters = factor | (parameters or {})
        return parse_rope(
            parameters,
            theta,
            max_positions=self.max_position_embeddings,
            original_positions=self.original_max_position_embeddings,
        )


class Llama(Keys):
    """Llama 1 to 3 (arXiv 2302.13971, 2407.21783) and the many models of the same shape."""

    attention_bias: bool = False
    mlp_bias: bool = False

    def traits(self) -> Traits:
        return Traits(
            activation=parse_activation(self.hidden_act),
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
        )


class Mistral(Keys):
    """Mistral 7B (arXiv 2310.06825), Nemo and Small: Llama with a window in every layer."""

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def windows(self) -> Windows:
        return (self.sliding_window,) * self.num_hidden_layers


class Qwen2(Keys):
    """Qwen 2 and 2.5 (arXiv 2407.10671): biases on queries, keys and values."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None

    def traits(self) -> Traits:
        return Traits(activation=parse_activation(self.hidden_act), qkv_bias=True)

    def windows(self) -> Windows:
        return _qwen_windows(self)


class Qwen3(Keys):
    """Qwen 3, dense (arXiv 2505.09388): norms on queries and keys instead of the biases."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    max_position_embeddings: int = 32768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None

    def traits(self) -> Traits:
        return Traits(
            activation=parse_activation(self.hidden_act),
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            head_norms=True,
        )

    def windows(self) -> Windows:
        return _qwen_windows(self)


def _qwen_windows(keys: Qwen2 | Qwen3) -> Windows:
    window = keys.sliding_window if keys.use_sliding_window else None
    if keys.layer_types is not None:
        return typed_windows(keys.layer_types, keys.num_hidden_layers, window)
    return upper_windows(keys.max_window_layers, keys.num_hidden_layers, window)


class Gemma3(Keys):
    """The text part of Gemma 3 (arXiv 2503.19786): most layers only see a window.

    The layers with a window have a rotary base of their own, to which no scaling applies.
    """

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    sliding_window_pattern: int = 6
    rope_local_base_freq: float | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False

    def traits(self) -> Traits:
        if self.attn_logit_softcapping is not None:
            raise unsupported(
                f"it caps attention scores at ± {self.attn_logit_softcapping} "
                "(attn_logit_softcapping), which no released Gemma 3 does",
                "Use a checkpoint without it.",
            )
        if self.use_bidirectional_attention:
            raise unsupported(
                "its attention is bidirectional (use_bidirectional_attention)",
                "Only models that generate text can run.",
            )
        if not self.query_pre_attn_scalar > 0:
            raise contradiction(
                f"query_pre_attn_scalar is {self.query_pre_attn_scalar:g}, which is not above 0"
            )
        return Traits(
            activation=parse_activation(self.hidden_activation),
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            head_norms=True,
            offset_norms=True,
            sandwich_norms=True,
            scaled_embedding=True,
            attention_scale=self.query_pre_attn_scalar**-0.5,
            logit_cap=self.final_logit_softcapping,
            exceeds_float16=True,
        )

    def windows(self) -> Windows:
        layers = self.num_hidden_layers
        types = self.layer_types
        if types is None:
            types = patterned_types(self.sliding_window_pattern, layers)
        return typed_windows(types, layers, self.sliding_window)

    def ropes(self) -> tuple[Rope, ...]:
        given = self.rope_parameters or {}
        parts = [part or {} for part in given.values()]
        if not given.keys() <= {FULL, SLIDING} or not all(isinstance(p, dict) for p in parts):
            raise contradiction(
                f"rope_parameters must have one object each for {FULL} and {SLIDING}"
            )
        full = self._rope(
            (given.get(FULL) or {}) | (self.rope_scaling or {}), self.rope_theta or 1_000_000.0
        )
        sliding = self._rope(given.get(SLIDING), self.rope_local_base_freq or 10_000.0)
        return tuple(full if window is None else sliding for window in self.windows())


FAMILIES: Mapping[Architecture, type[Keys]] = MappingProxyType(
    {
        Architecture.LLAMA: Llama,
        Architecture.MISTRAL: Mistral,
        Architecture.QWEN2: Qwen2,
        Architecture.QWEN3: Qwen3,
        Architecture.GEMMA3: Gemma3,
        Architecture.GEMMA3_VISION: Gemma3,
    }
)
MODEL_TYPES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture.LLAMA,
        "mistral": Architecture.MISTRAL,
        "qwen2": Architecture.QWEN2,
        "qwen3": Architecture.QWEN3,
        "gemma3_text": Architecture.GEMMA3,
        "gemma3": Architecture.GEMMA3_VISION,
    }
)
"""Architectures by model_type, for a config.json without ``architectures``."""
