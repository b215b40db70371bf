"""The model that everybody loads: Qwen3-0.6B's shape with random weights, written once.

Owns its folder: config.json, model.safetensors, tokenizer.json, and a GGUF file for each type
that was asked for. Needs the ``gguf`` package for those.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support.tiny_models import make_config, make_tokenizer, random_tensors

QWEN3_06B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
}
SMALL: dict[str, Any] = QWEN3_06B | {"vocab_size": 4096, "num_hidden_layers": 2}
"""To try the benchmark itself out."""
WEIGHT_STD = 0.02
HEAD_GAIN = 10.0
"""Deviation of the final norm's weights, around 0. Logits then have a deviation of 6.4, so that a
top-p nucleus is as small as a trained model's; of weights around 1 it would be half the
vocabulary, and with tied embeddings every token would predict itself."""
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_checkpoint(folder: Path, shape: dict[str, Any]) -> Path:
    """Writes the checkpoint into *folder*, unless it is there already."""
    weights = folder / "model.safetensors"
    if weights.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config("qwen3", torch_dtype="bfloat16", **shape)
    tensors = random_tensors(config, std=WEIGHT_STD, dtype=torch.bfloat16)
    noise = torch.randn(config["hidden_size"], generator=torch.Generator().manual_seed(1))
    tensors["model.norm.weight"] = (noise * HEAD_GAIN).to(torch.bfloat16)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    partial = folder / "partial.safetensors"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, weights)
    return folder


def gguf_path(folder: Path, kind: str) -> Path:
    """Where the GGUF file of type *kind* lies."""
    return folder / f"model-{kind}.gguf"


def make_gguf(folder: Path, kind: str) -> Path:
    """Converts the checkpoint in *folder* to GGUF with matrices of type *kind*, norms in float32.

    *kind* is ``bf16``, ``f16`` or ``q8_0``. The file has no vocabulary: prompts are token ids.
    """
    path = gguf_path(folder, kind)
    if path.exists():
        return path
    import gguf  # only in the environment of the peers

    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    _add_config(writer, json.loads((folder / "config.json").read_text()))
    matrix_type = gguf.GGMLQuantizationType[kind.upper()]
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
            values = tensors.get_tensor(name).float().numpy()
            dtype = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else matrix_type
            data = gguf.quants.quantize(values, dtype)
            writer.add_tensor(gguf_name(name), data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    return path


def gguf_name(name: str) -> str:
    """The name of a tensor in GGUF files; *name* is the one in safetensors."""
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    if name in outer:
        return f"{outer[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def _add_config(writer: Any, config: dict[str, Any]) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model("none")
