"""What a model is, parsed from its config.json and validated; no torch.

Owns the translation from a Hugging Face config to :class:`ModelConfig`, in which every default is
resolved; ``families.py`` knows what each family's keys mean. Must not know devices, the dtype in
use, or how the weights are stored.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from neuron.layers.rope import Rope, RopeType
from neuron.models.errors import LoadCode, LoadError, contradiction, unsupported
from neuron.models.families import FAMILIES, MODEL_TYPES, Architecture, Gemma3, Keys
from neuron.models.traits import Traits
from protocol.runtime.bounded_files import read_bounded

T = TypeVar("T")
VISION = ("vision_tower.", "multi_modal_projector.")
MAX_CONFIG_BYTES = 4 << 20
"""Limit on config.json; real ones have some KiB."""
MOST_LAYERS = 10_000
"""A config with more layers is nonsense, and its list of layers would exhaust the memory."""


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
    traits: Traits
    windows: tuple[int | None, ...]
    """Per layer: how many positions back (itself included) a token sees; None = all."""
    ropes: tuple[Rope, ...]
    """Per layer: the rotary parameters."""
    context_limit: int
    """Number of positions that the checkpoint was made for."""
    dtype: str | None
    """The dtype stated in config.json, if any."""
    left_out: tuple[str, ...] = ()
    """Prefixes of the names of tensors that the engine does not use."""

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of KV cache per token over all layers, at *itemsize* bytes per number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may contain tensor *name* although the model does not read it.

        *name* is in ``checkpoint.canonical`` form.
        """
        tied_head = self.tied and name == "lm_head.weight"
        left_out = name.startswith(self.left_out)
        return tied_head or left_out or name.endswith("rotary_emb.inv_freq")


class _Kind(msgspec.Struct):
    architectures: list[str] | None = None
    model_type: str | None = None


class _VisionConfig(msgspec.Struct):
    """The config of Gemma 3 with a vision tower, which contains that of its text part."""

    text_config: Gemma3 | None = None
    tie_word_embeddings: bool | None = True
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, object] | None = None


def load_config(model_dir: Path) -> ModelConfig:
    """Reads ``config.json`` of *model_dir*.

    Raises :class:`LoadError`: NOT_FOUND without the file, CORRUPT when it is not JSON or
    contradicts itself, UNSUPPORTED for what the engine cannot run.
    """
    path = model_dir / "config.json"
    try:
        raw = read_bounded(path, MAX_CONFIG_BYTES)
    except OSError as error:
        raise LoadError(
            LoadCode.NOT_FOUND,
            f"{model_dir} cannot be loaded: its config.json cannot be read "
            f"({error.strerror or error}). Name a folder with config.json, *.safetensors and "
            "tokenizer.json.",
        ) from error
    return parse_config(raw)


def parse_config(text: bytes) -> ModelConfig:
    """Parses the bytes of a config.json. Raises what :func:`load_config` raises."""
    # The architecture first: another architecture's config need not have the keys that we know.
    architecture = _architecture(_decode(text, _Kind))
    if architecture is Architecture.GEMMA3_VISION:
        keys = _text_part(_decode(text, _VisionConfig))
    else:
        keys = _decode(text, FAMILIES[architecture])
    if keys.quantization_config is not None:
        method = keys.quantization_config.get("quant_method", "unknown")
        raise unsupported(
            f"its weights are quantised ({method})", "Use the unquantised bf16, fp16 or fp32 model."
        )
    _check_sizes(keys)
    heads, ropes = keys.num_attention_heads, keys.ropes()
    config = ModelConfig(
        architecture=architecture,
        vocab_size=keys.vocab_size,
        hidden_size=keys.hidden_size,
        intermediate_size=keys.intermediate_size,
        layers=keys.num_hidden_layers,
        heads=heads,
        kv_heads=heads if keys.num_key_value_heads is None else keys.num_key_value_heads,
        head_dim=_head_dim(keys),
        norm_eps=keys.rms_norm_eps,
        tied=keys.tie_word_embeddings,
        traits=keys.traits(),
        windows=keys.windows(),
        ropes=ropes,
        context_limit=_context_limit(keys.max_position_embeddings, ropes),
        dtype=keys.dtype or keys.torch_dtype,
        left_out=VISION if architecture is Architecture.GEMMA3_VISION else (),
    )
    _check_shape(config)
    return config


def _decode(text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadError(
            LoadCode.CORRUPT,
            f"config.json cannot be parsed: {error}. Download the model again.",
        ) from error


def _architecture(kind: _Kind) -> Architecture:
    for name in kind.architectures or ():
        if name in set(Architecture):
            return Architecture(name)
    of_type = MODEL_TYPES.get(kind.model_type or "")
    if not kind.architectures and of_type is not None:
        return of_type
    what = ", ".join(kind.architectures or ()) or f"model_type {kind.model_type!r}"
    raise unsupported(f"its architecture is {what}", f"Supported: {', '.join(Architecture)}.")


def _text_part(whole: _VisionConfig) -> Keys:
    """The text part's keys; keys that concern all weights come from the outer config."""
    text = whole.text_config or Gemma3()
    text.tie_word_embeddings = whole.tie_word_embeddings is True
    text.dtype = whole.dtype or whole.torch_dtype or text.dtype
    text.quantization_config = whole.quantization_config or text.quantization_config
    return text


def _head_dim(keys: Keys) -> int:
    if keys.head_dim is not None:
        return keys.head_dim
    hidden, heads = keys.hidden_size, keys.num_attention_heads
    if hidden % heads:
        raise contradiction(
            f"hidden_size {hidden} cannot be divided among {heads} attention heads "
            "and no head_dim is given"
        )
    return hidden // heads


def _context_limit(positions: int, ropes: tuple[Rope, ...]) -> int:
    """The larger of both limits: yarn is often enabled without raising max_position_embeddings."""
    stretched = (int(r.original_context * r.factor) for r in ropes if r.type is RopeType.YARN)
    return max(positions, *stretched, 1)


def _check_sizes(keys: Keys) -> None:
    """Checks the sizes before anything is derived from them."""
    sizes = {
        "vocab_size": keys.vocab_size,
        "hidden_size": keys.hidden_size,
        "intermediate_size": keys.intermediate_size,
        "num_hidden_layers": keys.num_hidden_layers,
        "num_attention_heads": keys.num_attention_heads,
        "num_key_value_heads": keys.num_key_value_heads,
        "head_dim": keys.head_dim,
        "max_position_embeddings": keys.max_position_embeddings,
    }
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise contradiction(f"{name} is {size}, which is below 1")
    if keys.num_hidden_layers > MOST_LAYERS:
        raise contradiction(
            f"num_hidden_layers is {keys.num_hidden_layers}, which is above {MOST_LAYERS}"
        )
    if not keys.rms_norm_eps >= 0:
        raise contradiction(f"rms_norm_eps is {keys.rms_norm_eps}, which is not 0 or more")


def _check_shape(config: ModelConfig) -> None:
    window = min((window for window in config.windows if window is not None), default=1)
    if window < 1:
        raise contradiction(f"sliding_window is {window}, which is below 1")
    if config.heads % config.kv_heads:
        raise contradiction(
            f"{config.heads} attention heads cannot be divided among {config.kv_heads} key/value "
            "heads"
        )
    if config.head_dim % 2:
        raise contradiction(f"head_dim is {config.head_dim}, which is odd")
    cap = config.traits.logit_cap
    if cap is not None and not cap > 0:
        raise contradiction(f"final_logit_softcapping is {cap}, which is not above 0")
