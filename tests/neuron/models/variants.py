"""The model configs that the numerics are tested with: per family, everything it can switch."""

from dataclasses import dataclass, field
from typing import Any

YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SLIDING_FIRST = ["sliding_attention", "full_attention", "sliding_attention"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A tiny model: *changes* to its family's config."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)


QWEN3: dict[str, dict[str, Any]] = {
    "tied-gqa2": {},
    "untied": {"tie_word_embeddings": False},
    "mha": {"num_key_value_heads": 4},
    "mqa-bias": {"num_key_value_heads": 1, "attention_bias": True},
    "eps": {"rms_norm_eps": 1e-2},
    "wide-heads": {"head_dim": 64, "num_attention_heads": 6, "num_key_value_heads": 2},
    "window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "window-types": {
        "use_sliding_window": True,
        "sliding_window": 20,
        "layer_types": SLIDING_FIRST,
    },
    "theta-new": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "linear-old": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "linear-new": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4},
    },
    "llama3-old": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3-new": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3},
    },
    "yarn-old": {"rope_scaling": {"type": "yarn", **YARN}},
    "yarn-new": {
        "rope_theta": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 3e4,
            "beta_fast": 16.0,
            "attention_factor": 1.3,
            **YARN,
        },
    },
}
LLAMA: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "all-biases": {"attention_bias": True, "mlp_bias": True},
    "mha": {"num_key_value_heads": 4},
    "head-dim": {"head_dim": 24},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
}
MISTRAL: dict[str, dict[str, Any]] = {
    "window": {},
    "no-window": {"sliding_window": None},
    "nemo": {"head_dim": 40, "rope_theta": 1e6},
    "narrow-window": {"sliding_window": 5, "head_dim": None},
    "yarn": {"rope_scaling": {"rope_type": "yarn", **YARN}},
}
QWEN2: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied-mqa": {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "window": {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2},
    "window-types": {
        "use_sliding_window": True,
        "sliding_window": 17,
        "layer_types": SLIDING_FIRST,
    },
    "yarn": {"rope_scaling": {"type": "yarn", **YARN}},
}
GEMMA3: dict[str, dict[str, Any]] = {
    "pattern": {},
    "types": {"sliding_window_pattern": None, "layer_types": SLIDING_FIRST},
    "untied-bias": {"tie_word_embeddings": False, "attention_bias": True},
    "mqa": {"num_key_value_heads": 1, "query_pre_attn_scalar": 40},
    "logit-cap": {"final_logit_softcapping": 2.5},
    "long": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3},
    "ropes-new": {
        "rope_theta": None,
        "rope_local_base_freq": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    },
    "odd-hidden": {"hidden_size": 56},
}
GEMMA3_VISION: dict[str, dict[str, Any]] = {
    "old-names": {},
    "old-names-untied": {"tie_word_embeddings": False},
    "new-names": {"prefix": "model.language_model.", "tie_word_embeddings": False},
}
VARIANTS = {
    f"{family}-{name}": Variant(family, changes)
    for family, variants in (
        ("qwen3", QWEN3),
        ("llama", LLAMA),
        ("mistral", MISTRAL),
        ("qwen2", QWEN2),
        ("gemma3", GEMMA3),
        ("gemma3-vision", GEMMA3_VISION),
    )
    for name, changes in variants.items()
}
