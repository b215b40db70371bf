"""Random checkpoints of a few kilobytes, written exactly as real ones are.

The weights are scaled so that logits are far from flat: a wrong rope base or epsilon must show.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support.tensor_shapes import text_shapes, vision_shapes

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "torch_dtype": "float32",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": None,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "attention_bias": None,
        "sliding_window": 24,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_bias": None,
        "head_dim": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 3,
        "rope_theta": 1000000.0,
    },
    "qwen3": {},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "sliding_window_pattern": 2,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
}
"""What each family's config.json says differently than SHAPE; None: it has no such key."""
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}
END = 256
"""The id of ``<|end|>``; 0 … 255 are the bytes, the ids above END mean nothing."""


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges; token *n* is byte *n*."""
    letters = _byte_letters()
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def _byte_letters() -> list[str]:
    """The character that stands for each byte in byte-level BPE (as in GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def make_config(family: str = "qwen3", **changes: Any) -> dict[str, Any]:
    """The content of config.json. A change to None removes the key.

    Family ``gemma3-vision`` is Gemma 3 with a vision tower; *changes* go to its text part.
    """
    family, _, vision = family.partition("-")
    merged = SHAPE | FAMILIES[family] | changes
    config = {key: value for key, value in merged.items() if value is not None}
    if not vision:
        return config
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {key: value for key, value in config.items() if key != "architectures"},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": config["tie_word_embeddings"],
        "torch_dtype": config["torch_dtype"],
    }


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with *config*, by its name in present-day checkpoints."""
    text = config.get("text_config")
    if text is None:
        return text_shapes(config)
    tower = {f"model.{name}": s for name, s in vision_shapes(text, VISION).items()}
    return tower | {
        name.replace("model.", "model.language_model.", 1): shape
        for name, shape in text_shapes(text).items()
    }


def random_tensors(
    config: Mapping[str, Any], *, seed: int = 0, std: float = 0.1, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Normal weights with deviation *std*; norms around 1, or around 0 where 1 is added."""
    generator = torch.Generator().manual_seed(seed)
    offset = config["model_type"].startswith("gemma3")
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator) * std
        tensors[name] = (noise + 1 if "norm" in name and not offset else noise).to(dtype)
    return tensors


def stored_name(name: str, prefix: str) -> str:
    """*name* as it is in checkpoints whose text model begins with *prefix*."""
    old_vision = prefix == "language_model.model."
    for present in ("model.language_model.", "model."):
        if name.startswith(present):
            bare = name.removeprefix(present)
            if bare.startswith(("vision_tower.", "multi_modal_projector.")):
                return bare if old_vision else name
            return prefix + bare
    return f"language_model.{name}" if old_vision else name


def write_checkpoint(
    folder: Path,
    family: str = "qwen3",
    *,
    seed: int = 0,
    std: float = 0.1,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    prefix: str | None = None,
    **changes: Any,
) -> Path:
    """Writes config.json, weights and tokenizer.json of a tiny model, as :func:`make_config`.

    *prefix* is what the names of the text model's tensors begin with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(family, torch_dtype=str(dtype).removeprefix("torch."), **changes)
    if prefix is None:
        prefix = "language_model.model." if "text_config" in config else "model."
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    tensors = {
        stored_name(name, prefix): tensor
        for name, tensor in random_tensors(config, seed=seed, std=std, dtype=dtype).items()
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
