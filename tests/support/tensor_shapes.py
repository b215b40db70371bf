"""The tensors of a checkpoint, by the names and in the shapes that real ones have."""

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]
HEAD_NORMS = ("qwen3", "gemma3_text")


def text_shapes(config: Mapping[str, Any]) -> Shapes:
    """Every tensor of a decoder whose config.json, or text_config, is *config*."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        for name, shape in _layer(config).items():
            shapes[f"model.layers.{i}.{name}"] = shape
    return shapes


def _layer(config: Mapping[str, Any]) -> Shapes:
    hidden, family = config["hidden_size"], config["model_type"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if family in HEAD_NORMS:
        norms = {"self_attn.q_norm": dim, "self_attn.k_norm": dim} | norms
    if family == "gemma3_text":
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    sizes = {f"{name}.weight": (size,) for name, size in norms.items()}
    return _attention(config, hidden, dim) | sizes | _mlp(config, hidden)


def _attention(config: Mapping[str, Any], hidden: int, dim: int) -> Shapes:
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    all_biased = "qkvo" if config.get("attention_bias") else ""
    # Two families do not ask the config.
    biased = {"qwen2": "qkv", "mistral": ""}.get(config["model_type"], all_biased)
    shapes: Shapes = {}
    for name, shape in {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden)}.items():
        _add(shapes, f"self_attn.{name}_proj", shape, bias=name in biased)
    _add(shapes, "self_attn.o_proj", (hidden, q), bias="o" in biased)
    return shapes


def _mlp(config: Mapping[str, Any], hidden: int) -> Shapes:
    inner, bias = config["intermediate_size"], bool(config.get("mlp_bias"))
    shapes: Shapes = {}
    for name in ("gate_proj", "up_proj"):
        _add(shapes, f"mlp.{name}", (inner, hidden), bias=bias)
    _add(shapes, "mlp.down_proj", (hidden, inner), bias=bias)
    return shapes


def vision_shapes(text: Mapping[str, Any], vision: Mapping[str, Any]) -> Shapes:
    """Every tensor of Gemma 3's vision tower (SigLIP) and of the projector behind it."""
    hidden, inner, side = (
        vision[name] for name in ("hidden_size", "intermediate_size", "patch_size")
    )
    tower = "vision_tower.vision_model."
    patches = (vision["image_size"] // side) ** 2
    shapes: Shapes = {
        "multi_modal_projector.mm_input_projection_weight": (hidden, text["hidden_size"]),
        "multi_modal_projector.mm_soft_emb_norm.weight": (hidden,),
        f"{tower}embeddings.position_embedding.weight": (patches, hidden),
    }
    _add(shapes, f"{tower}embeddings.patch_embedding", (hidden, 3, side, side), bias=True)
    _add(shapes, f"{tower}post_layernorm", (hidden,), bias=True)
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            _add(shapes, f"{layer}self_attn.{name}", (hidden, hidden), bias=True)
        for name in ("layer_norm1", "layer_norm2"):
            _add(shapes, f"{layer}{name}", (hidden,), bias=True)
        _add(shapes, f"{layer}mlp.fc1", (inner, hidden), bias=True)
        _add(shapes, f"{layer}mlp.fc2", (hidden, inner), bias=True)
    return shapes


def _add(shapes: Shapes, name: str, shape: tuple[int, ...], *, bias: bool) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]
