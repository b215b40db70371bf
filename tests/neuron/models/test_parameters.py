"""The table of parameters is exactly the decoder's, for every family, trait and rank."""

import json
from typing import Any

import pytest
import torch

from neuron.layers.group import Group
from neuron.layers.linear import Linear
from neuron.models.config import ModelConfig, parse_config
from neuron.models.decoder import Decoder
from neuron.models.parameters import linear_shapes, parameters
from tests.support.tiny_models import FAMILIES, make_config

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in (*FAMILIES, "gemma3-vision")},
    "untied": ("qwen3", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "biased qwen": ("qwen3", {"attention_bias": True}),
    "one kv head": ("qwen3", {"num_key_value_heads": 1}),
    "twelve to two": ("qwen3", {"num_attention_heads": 12, "num_key_value_heads": 2}),
    "odd vocabulary": ("llama", {"vocab_size": 317}),
    "more ranks than rows": ("llama", {"vocab_size": 2}),
}
RANKS = (1, 2, 4)


def config_of(name: str) -> ModelConfig:
    family, changes = VARIANTS[name]
    return parse_config(json.dumps(make_config(family, **changes)).encode())


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_is_the_decoder(name: str, ranks: int) -> None:
    config = config_of(name)
    for rank in range(ranks):
        model = Decoder(
            config, torch.float32, torch.float32, torch.device("cpu"), Group(rank, ranks)
        )
        slots = {key: (slot.shape, tuple(slot.target.shape)) for key, slot in model.slots().items()}
        table = parameters(config, rank, ranks)
        assert {key: tuple(parameter) for key, parameter in table.items()} == slots
        assert list(table) == list(slots), "errors name the first of them"
        assert sum(each.elements for each in table.values()) == sum(
            parameter.numel() for parameter in model.parameters()
        )
        maps = [module.weight.shape for module in model.modules() if isinstance(module, Linear)]
        assert linear_shapes(config, rank, ranks) == sorted({(m[0], m[1]) for m in maps})
