"""What a config.json leaves unsaid means what transformers' config class of the family says."""

import json
from typing import Any

import pytest
import torch
import transformers

from neuron.models.config import ModelConfig, parse_config
from neuron.models.decoder import Decoder
from neuron.models.families import MODEL_TYPES, Architecture
from neuron.models.traits import Activation
from tests.support.tiny_models import make_config, tensor_shapes

CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma3": transformers.Gemma3TextConfig,
}
UNLIKE: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "attention_bias": True,
    "mlp_bias": True,
    "rms_norm_eps": 1e-3,
    "use_sliding_window": True,
    "sliding_window": 9,
    "max_window_layers": 1,
    "rope_theta": 3e4,
    "rope_local_base_freq": 2e4,
    "hidden_activation": "silu",
    "query_pre_attn_scalar": 36,
    "sliding_window_pattern": 3,
}
"""A value for each key that is no family's default."""


def unlike_defaults(family: str) -> dict[str, Any]:
    config = make_config(family, head_dim=48, hidden_size=256, num_attention_heads=64)
    config |= {key: value for key, value in UNLIKE.items() if key in config}
    if family == "gemma3":
        config["final_logit_softcapping"] = 20.0
    config["tie_word_embeddings"] = family != "gemma3"
    return config


def parse(config: dict[str, Any]) -> ModelConfig:
    return parse_config(json.dumps(config).encode())


def spelled_out(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """*config* with every key that transformers' class adds to it."""
    return json.loads(CONFIGS[family](**config).to_json_string(use_diff=False))  # type: ignore[no-any-return]


NAMES = {"architectures", "model_type"}
CASES = [(family, key) for family in CONFIGS for key in unlike_defaults(family) if key not in NAMES]


@pytest.mark.parametrize(("family", "key"), CASES)
def test_an_absent_key_is_transformers_default(family: str, key: str) -> None:
    config = unlike_defaults(family)
    whole = parse(config)
    assert whole == parse(spelled_out(family, config))
    del config[key]
    assert parse(config) == parse(spelled_out(family, config))
    assert parse(config) != whole, "the key is not read, or its value was the default"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_without_any_key_is_transformers_default(family: str) -> None:
    bare = {"architectures": make_config(family)["architectures"]}
    assert parse(bare) == parse(spelled_out(family, bare))


def test_an_absent_text_config_is_transformers_default() -> None:
    bare = {"architectures": ["Gemma3ForConditionalGeneration"]}
    text = {"architectures": ["Gemma3ForCausalLM"]}
    whole = json.loads(transformers.Gemma3Config(**bare).to_json_string(use_diff=False))
    assert parse(bare) == parse(whole)
    for name in ("windows", "ropes", "traits", "tied", "vocab_size"):
        assert getattr(parse(bare), name) == getattr(parse(text), name)


@pytest.mark.parametrize("family", [*CONFIGS, "gemma3-vision"])
@pytest.mark.parametrize("tied", [True, False])
def test_tiny_checkpoints_hold_the_tensors_of_transformers(family: str, tied: bool) -> None:
    config = make_config(family, tie_word_embeddings=tied)
    (name,) = config["architectures"]
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class(**config))
    theirs = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if tied:
        theirs.pop("lm_head.weight")
    # transformers 5 has one module less than the checkpoints around the vision tower.
    ours = {key.replace(".vision_model.", "."): s for key, s in tensor_shapes(config).items()}
    assert ours == theirs


def test_every_architecture_has_a_model_type() -> None:
    assert set(MODEL_TYPES.values()) == set(Architecture)
    for family in [*CONFIGS, "gemma3-vision"]:
        config = make_config(family)
        named = parse(config)
        del config["architectures"]
        assert parse(config) == named


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": ({"architectures": ["MistralForCausalLM"]}, 7_241_732_096),
    "Mistral-Nemo": (
        {
            "architectures": ["MistralForCausalLM"],
            "vocab_size": 131072,
            "hidden_size": 5120,
            "num_hidden_layers": 40,
            "head_dim": 128,
            "sliding_window": None,
        },
        12_247_782_400,
    ),
    "Qwen2.5-7B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        7_615_616_512,
    ),
    "Qwen3-8B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
        },
        8_190_735_360,
    ),
    "gemma-3-1b": (
        {
            "architectures": ["Gemma3ForCausalLM"],
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "sliding_window": 512,
        },
        999_885_952,
    ),
}
"""Shapes of released models, and the number of parameters that their pages state."""


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_released_models_have_their_number_of_parameters(
    config: dict[str, Any], parameters: int
) -> None:
    model = Decoder(parse(config), torch.bfloat16, torch.bfloat16, torch.device("meta"))
    assert sum(slot.target.numel() for slot in model.slots().values()) == parameters


def test_gemma_3_4b_leaves_most_unsaid() -> None:
    """As released: the text config of the 4B model states seven keys."""
    config = parse(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "torch_dtype": "bfloat16",
            "vision_config": {"model_type": "siglip_vision_model"},
        }
    )
    assert (config.heads, config.kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.tied, config.dtype) == (262208, True, "bfloat16")
    assert config.windows[:6] == (1024,) * 5 + (None,)
    assert (config.ropes[0].theta, config.ropes[5].theta) == (1e4, 1e6)
    assert (config.ropes[0].factor, config.ropes[5].factor) == (1.0, 8.0)
    assert config.traits.activation is Activation.GELU_TANH
    assert config.windows.count(None) == 5
