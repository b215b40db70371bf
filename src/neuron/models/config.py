"""What a model is, parsed from its config.json and validated; no torch.

Owns the translation from a Hugging Face config to :class:`ModelConfig`, where every default is
resolved. Must not know devices, dtypes in use, or how the weights are stored.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from neuron.layers.rope import Rope, RopeType
from neuron.models.errors import LoadCode, LoadError
from neuron.models.ropeconfig import parse_rope

T = TypeVar("T")


class Architecture(StrEnum):
    """The architectures that ``registry.py`` can build, by their name in config.json."""

    QWEN3 = "Qwen3ForCausalLM"


MODEL_TYPES = {"qwen3": Architecture.QWEN3}


class ModelConfig(msgspec.Struct, frozen=True):
    """The shape and numerics of a decoder model."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool
    """Whether the output head shares the embedding's weights."""
    attention_bias: bool
    windows: tuple[int | None, ...]
    """Per layer: how many positions back (itself included) a token sees; None = all."""
    rope: Rope
    context_limit: int
    """Positions the checkpoint is made for."""
    dtype: str | None
    """The dtype that config.json states, if any."""

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of KV cache that one token needs over all layers, *itemsize* bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


class _RawConfig(msgspec.Struct):
    """config.json as transformers writes it; absent keys have Qwen3Config's defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    architectures: list[str] | None = None
    model_type: str | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    original_max_position_embeddings: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None


class _Kind(msgspec.Struct):
    architectures: list[str] | None = None
    model_type: str | None = None


def load_config(model_dir: Path) -> ModelConfig:
    """Reads ``config.json`` of *model_dir*.

    Raises :class:`LoadError`: NOT_FOUND without the file, CORRUPT when it is no JSON or
    contradicts itself, UNSUPPORTED for what the engine cannot run.
    """
    path = model_dir / "config.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LoadError(
            LoadCode.NOT_FOUND,
            f"{model_dir} cannot be loaded: its config.json cannot be read ({error.strerror}). "
            "Point to a folder with config.json, *.safetensors and tokenizer.json.",
        ) from error
    return parse_config(raw)


def parse_config(text: bytes) -> ModelConfig:
    """Parses the bytes of a config.json; raises as :func:`load_config`."""
    # The architecture first: another model's config need not have the fields of ours.
    architecture = _architecture(_decode(text, _Kind))
    raw = _decode(text, _RawConfig)
    if raw.quantization_config is not None:
        method = raw.quantization_config.get("quant_method", "unknown")
        raise _unsupported(
            f"its weights are quantised ({method})", "Use the unquantised bf16, fp16 or fp32 model."
        )
    if raw.hidden_act != "silu":
        raise _unsupported(f"its activation is {raw.hidden_act!r}", "Supported: silu.")
    heads, head_dim = raw.num_attention_heads, raw.head_dim
    if head_dim is None:
        head_dim = raw.hidden_size // max(1, heads)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=raw.vocab_size,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        layers=raw.num_hidden_layers,
        heads=heads,
        kv_heads=raw.num_key_value_heads if raw.num_key_value_heads is not None else heads,
        head_dim=head_dim,
        norm_eps=raw.rms_norm_eps,
        tied=raw.tie_word_embeddings,
        attention_bias=raw.attention_bias,
        windows=_windows(raw),
        rope=(rope := _rope(raw)),
        context_limit=_context_limit(raw, rope),
        dtype=raw.dtype or raw.torch_dtype,
    )
    _check_shape(config)
    return config


def _decode(text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LoadError(
            LoadCode.CORRUPT,
            f"config.json cannot be understood: {error}. Fetch the model again.",
        ) from error


def _architecture(kind: _Kind) -> Architecture:
    for name in kind.architectures or ():
        if name in set(Architecture):
            return Architecture(name)
    if not kind.architectures and kind.model_type in MODEL_TYPES:
        return MODEL_TYPES[kind.model_type]
    what = ", ".join(kind.architectures or ()) or f"model_type {kind.model_type!r}"
    raise _unsupported(f"its architecture is {what}", f"Supported: {', '.join(Architecture)}.")


def _rope(raw: _RawConfig) -> Rope:
    parameters = raw.rope_scaling or raw.rope_parameters
    if raw.partial_rotary_factor is not None:
        factor = raw.partial_rotary_factor
        parameters = {"partial_rotary_factor": factor} | (parameters or {})
    return parse_rope(
        parameters,
        raw.rope_theta,
        max_positions=raw.max_position_embeddings,
        original_positions=raw.original_max_position_embeddings,
    )


def _context_limit(raw: _RawConfig, rope: Rope) -> int:
    """Yarn is often switched on without raising max_position_embeddings; both count."""
    if rope.type is RopeType.YARN:
        return max(raw.max_position_embeddings, int(rope.original_context * rope.factor))
    return raw.max_position_embeddings


def _windows(raw: _RawConfig) -> tuple[int | None, ...]:
    window = raw.sliding_window if raw.use_sliding_window else None
    types = raw.layer_types
    if types is None:
        return tuple(
            window if i >= raw.max_window_layers else None for i in range(raw.num_hidden_layers)
        )
    if len(types) != raw.num_hidden_layers:
        raise LoadError(
            LoadCode.CORRUPT,
            f"config.json names {len(types)} layer_types for {raw.num_hidden_layers} layers. "
            "Fetch the model again.",
        )
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise _unsupported(
            f"it has layers of type {', '.join(unknown)}",
            "Supported: full_attention, sliding_attention.",
        )
    if window is None and "sliding_attention" in types:
        raise LoadError(
            LoadCode.CORRUPT,
            "config.json has sliding_attention layers but no sliding_window in use. "
            "Set use_sliding_window and sliding_window, or make the layers full_attention.",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _check_shape(config: ModelConfig) -> None:
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_limit,
        "sliding_window": min(
            (window for window in config.windows if window is not None), default=1
        ),
    }
    for name, size in sizes.items():
        if size < 1:
            raise _contradiction(f"{name} is {size}")
    if config.heads % config.kv_heads:
        raise _contradiction(
            f"{config.heads} attention heads cannot share {config.kv_heads} key/value heads"
        )
    if config.head_dim % 2:
        raise _contradiction(f"head_dim is {config.head_dim}, which is odd")


def _contradiction(what: str) -> LoadError:
    return LoadError(
        LoadCode.CORRUPT,
        f"config.json makes no sense: {what}. Correct it or fetch the model again.",
    )


def _unsupported(what: str, remedy: str) -> LoadError:
    return LoadError(LoadCode.UNSUPPORTED, f"This engine cannot run the model: {what}. {remedy}")
