"""config.json in its spellings, and what is refused with which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from neuron.layers.rope import Rope, RopeType
from neuron.models.config import ModelConfig, load_config, parse_config
from neuron.models.errors import LoadCode, LoadError
from neuron.models.families import Architecture
from tests.support.tiny_models import SHAPE, make_config


def parse(family: str = "qwen3", **changes: Any) -> ModelConfig:
    """The tiny config of *family* with *changes*; None removes a key."""
    return parse_config(json.dumps(make_config(family, **changes)).encode())


def test_the_plain_case() -> None:
    config = parse()
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (3, 4, 2, 32)
    assert config.windows == (None, None, None)
    assert config.ropes == (Rope(),) * 3
    assert (config.context_limit, config.dtype) == (4096, "float32")
    assert config.kv_bytes_per_token(2) == 2 * 3 * 2 * 32 * 2
    assert config.architecture is Architecture.QWEN3


def test_model_type_stands_in_for_missing_architectures() -> None:
    assert parse(architectures=None) == parse()


def test_null_and_missing_fields_have_transformers_defaults() -> None:
    """Missing ones, key by key: test_families.py."""
    assert parse(head_dim=None).head_dim == 128
    nulls = dict.fromkeys(("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling"))
    for family in ("llama", "mistral", "qwen2", "qwen3", "gemma3"):
        config = parse_config(json.dumps(make_config(family) | nulls).encode())
        assert (config.head_dim, config.kv_heads) == (16, 4)
        assert config.ropes[1].theta == (1e6 if family == "gemma3" else 1e4)


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
    assert parse("qwen2", **changes).windows == windows


def test_windows_of_the_other_families() -> None:
    assert parse("llama", sliding_window=8).windows == (None,) * 3, "Llama has no such key"
    assert parse("mistral").windows == (24,) * 3
    raw = json.dumps(make_config("mistral") | {"sliding_window": None}).encode()
    assert parse_config(raw).windows == (None,) * 3
    assert parse("gemma3").windows == (12, None, 12)
    assert parse("gemma3", sliding_window_pattern=3).windows == (12, 12, None)
    types = ["full_attention", "sliding_attention", "full_attention"]
    assert parse("gemma3", layer_types=types).windows == (None, 12, None)


def test_gemmas_local_layers_have_a_rope_of_their_own() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = parse("gemma3", rope_scaling=scaling)
    assert old.ropes == (Rope(), Rope(RopeType.LINEAR, 1e6, 8.0), Rope())
    new = parse(
        "gemma3",
        rope_theta=None,
        rope_local_base_freq=None,
        rope_parameters={
            "full_attention": scaling | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert new.ropes == old.ropes


def test_the_text_part_of_a_vision_model() -> None:
    text, whole = parse("gemma3"), parse("gemma3-vision")
    for name in ("traits", "windows", "ropes", "tied", "dtype", "head_dim"):
        assert getattr(whole, name) == getattr(text, name), name
    assert "vision_tower." in whole.left_out
    assert not text.left_out
    config = make_config("gemma3-vision") | {"tie_word_embeddings": False, "dtype": "bfloat16"}
    changed = parse_config(json.dumps(config).encode())
    assert (changed.tied, changed.dtype) == (False, "bfloat16"), "the outer config decides"


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_old_and_new_spelling_mean_the_same(name: str) -> None:
    old = parse(rope_theta=1e6, rope_scaling={name: "yarn", **YARN})
    new = parse(rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **YARN})
    assert old.ropes == new.ropes
    assert old.ropes[0].type is RopeType.YARN
    assert old.ropes[0].attention_factor == pytest.approx(1.138629)
    assert old.context_limit == 131072, "yarn extends what max_position_embeddings says"


def test_a_null_scaling_is_none() -> None:
    assert parse_config(json.dumps(SHAPE | {"rope_scaling": None}).encode()).ropes == (Rope(),) * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", *Architecture]),
        ({"architectures": None, "model_type": "mamba"}, ["mamba", *Architecture]),
        ({"architectures": None, "model_type": None}, [*Architecture]),
        ({"hidden_act": "relu"}, ["relu", "silu", "gelu_pytorch_tanh"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, ["dynamic", "llama3", "yarn"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, ["factor"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
        ({"partial_rotary_factor": 0.5}, ["0.5"]),
        ({"rope_theta": 1.0}, ["rope_theta is 1,"]),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, ["'factor' is 0"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": -1}}, ["beta_fast"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "attention_factor": 0}}, ["attention_fac"]),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 2},
                "original_max_position_embeddings": -1,
            },
            ["original_max_position_embeddings", "-1"],
        ),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                }
            },
            ["high_freq_factor 4 is not above"],
        ),
        ({"family": "gemma3", "attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50"]),
        ({"family": "gemma3", "use_bidirectional_attention": True}, ["use_bidirectional"]),
        ({"family": "gemma3", "layer_types": ["mamba"] * 3}, ["of type mamba"]),
        ({"family": "gemma3-vision", "attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
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
        ({"vocab_size": "320"}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "3 key/value"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 33}, "33"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 3"),
        ({"layer_types": ["sliding_attention"] * 3}, "no sliding_window"),
        ({"num_attention_heads": 2.5}, "num_attention_heads"),
        ({"family": "llama", "num_attention_heads": 5}, "hidden_size 64 .* 5 attention heads"),
        ({"family": "llama", "head_dim": -2}, "head_dim is -2"),
        ({"intermediate_size": 0}, "intermediate_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"family": "mistral", "sliding_window": -1}, "sliding_window is -1"),
        ({"family": "gemma3", "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"family": "gemma3", "layer_types": ["full_attention"] * 2}, "2 layer_types for 3"),
        ({"family": "gemma3", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"family": "gemma3", "final_logit_softcapping": 0}, "final_logit_softcapping is 0"),
        (
            {"family": "gemma3", "rope_parameters": {"rope_type": "default"}},
            "one object each",
        ),
        ({"family": "gemma3", "rope_parameters": {"full_attention": 3}}, "one object each"),
        ({"family": "gemma3-vision", "hidden_size": "64"}, "text_config.hidden_size"),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, "sliding_win"),
    ],
)
def test_contradictions_are_corrupt(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(LoadError, match=word) as caught:
        parse(**changes)
    assert caught.value.code is LoadCode.CORRUPT


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 99999])
def test_no_json_object_is_corrupt(text: bytes) -> None:
    with pytest.raises(LoadError) as caught:
        parse_config(text)
    assert caught.value.code is LoadCode.CORRUPT


def test_a_missing_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json") as caught:
        load_config(tmp_path)
    assert caught.value.code is LoadCode.NOT_FOUND
