"""config.json in its spellings, and what is refused with which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from neuron.layers.rope import Rope, RopeType
from neuron.models.config import ModelConfig, load_config, parse_config
from neuron.models.errors import LoadCode, LoadError
from neuron.models.registry import model_class
from tests.support.tiny_models import SHAPE


def parse(**changes: Any) -> ModelConfig:
    """SHAPE with *changes*; None removes a key."""
    config = {key: value for key, value in (SHAPE | changes).items() if value is not None}
    return parse_config(json.dumps(config).encode())


def test_the_plain_case() -> None:
    config = parse()
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (3, 4, 2, 32)
    assert config.windows == (None, None, None)
    assert config.rope == Rope()
    assert (config.context_limit, config.dtype) == (4096, "float32")
    assert config.kv_bytes_per_token(2) == 2 * 3 * 2 * 32 * 2
    assert model_class(config.architecture).__name__ == "Qwen3"


def test_model_type_stands_in_for_missing_architectures() -> None:
    assert parse(architectures=None) == parse()


def test_null_and_missing_fields_have_transformers_defaults() -> None:
    assert parse(num_key_value_heads=None).kv_heads == 4
    assert parse(head_dim=None).head_dim == 128
    assert parse(rope_theta=None).rope.theta == 10_000
    raw = json.dumps(SHAPE | {"head_dim": None}).encode()
    assert parse_config(raw).head_dim == 16


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            (None, None, 8),
        ),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, (None,) * 3),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, None, 8),
        ),
    ],
)
def test_windows(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert parse(**changes).windows == windows


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_old_and_new_spelling_mean_the_same(name: str) -> None:
    old = parse(rope_theta=1e6, rope_scaling={name: "yarn", **YARN})
    new = parse(rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **YARN})
    assert old.rope == new.rope
    assert old.rope.type is RopeType.YARN
    assert old.rope.attention_factor == pytest.approx(1.138629)
    assert old.context_limit == 131072, "yarn extends what max_position_embeddings says"


def test_a_null_scaling_is_none() -> None:
    assert parse_config(json.dumps(SHAPE | {"rope_scaling": None}).encode()).rope == Rope()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": None, "model_type": "mamba"}, ["mamba", "Qwen3ForCausalLM"]),
        ({"architectures": None, "model_type": None}, ["Qwen3ForCausalLM"]),
        ({"hidden_act": "gelu"}, ["gelu", "silu"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, ["dynamic", "llama3", "yarn"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, ["factor"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
        ({"partial_rotary_factor": 0.5}, ["0.5"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["each layer type"]),
        (
            {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
            ["linear_attention"],
        ),
    ],
)
def test_the_unsupported_is_refused_with_what_is_supported(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(LoadError) as caught:
        parse(**changes)
    assert caught.value.code is LoadCode.UNSUPPORTED
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "3 key/value"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 33}, "33"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 3"),
        ({"layer_types": ["sliding_attention"] * 3}, "no sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, "sliding_win"),
    ],
)
def test_contradictions_are_corrupt(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(LoadError, match=word) as caught:
        parse(**changes)
    assert caught.value.code is LoadCode.CORRUPT


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_no_json_object_is_corrupt(text: bytes) -> None:
    with pytest.raises(LoadError) as caught:
        parse_config(text)
    assert caught.value.code is LoadCode.CORRUPT


def test_a_missing_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json") as caught:
        load_config(tmp_path)
    assert caught.value.code is LoadCode.NOT_FOUND
