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


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Qwen3 checkpoint with *config*."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        projections = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        for name, shape in projections.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = shape
            if config["attention_bias"]:
                shapes[f"{layer}self_attn.{name}_proj.bias"] = shape[:1]
        for name, size in (
            ("self_attn.q_norm", dim),
            ("self_attn.k_norm", dim),
            ("input_layernorm", hidden),
            ("post_attention_layernorm", hidden),
        ):
            shapes[f"{layer}{name}.weight"] = (size,)
        for name, shape in (
            ("gate_proj", (inner, hidden)),
            ("up_proj", (inner, hidden)),
            ("down_proj", (hidden, inner)),
        ):
            shapes[f"{layer}mlp.{name}.weight"] = shape
    return shapes


def random_tensors(
    config: Mapping[str, Any], *, seed: int = 0, std: float = 0.1, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Normal weights with deviation *std*; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator) * std
        tensors[name] = (noise + 1 if "norm" in name else noise).to(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    std: float = 0.1,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    prefix: str = "model.",
    **changes: Any,
) -> Path:
    """Writes config.json, weights and tokenizer.json; *changes* replace keys of the config.

    A change to None removes the key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (SHAPE | changes).items() if value is not None}
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    tensors = {
        prefix + name.removeprefix("model.") if name.startswith("model.") else name: tensor
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
