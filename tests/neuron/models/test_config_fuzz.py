"""Whatever a config.json says, it is a model or a LoadError, never another exception."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.layers.rope import RopeType
from neuron.layers.rotary import frequencies
from neuron.models.config import ModelConfig, parse_config
from neuron.models.errors import LoadError
from neuron.models.families import FAMILIES, Architecture
from tests.support.properties import examples
from tests.support.tiny_models import make_config

KEYS = sorted({key for kind in FAMILIES.values() for key in kind.__struct_fields__})
NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 64, -1, 0.5, -2.5, 1e-30, 1e308, 2**40, 2**70])
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(["silu", "64", ""])
LAYERS = st.lists(st.sampled_from(["full_attention", "sliding_attention", "mamba"]), max_size=4)
CHANGES = st.dictionaries(st.sampled_from(KEYS), SCALARS | LAYERS, min_size=1, max_size=2)
FACTORS = st.sampled_from([-1, 0, 1, 2, 2.5, 4, 8, 1e-30, 1e30])
ROPE = st.fixed_dictionaries(
    {
        "rope_type": st.sampled_from(RopeType),
        "factor": FACTORS,
        "low_freq_factor": FACTORS,
        "high_freq_factor": FACTORS,
    },
    optional={
        "rope_theta": st.sampled_from([-5, 0, 0.5, 1, 1.5, 1e4, 1e30]),
        "original_max_position_embeddings": st.sampled_from([-8, 0, 1, 8, 0.5, 4096, 1e300]),
        "beta_fast": FACTORS,
        "beta_slow": FACTORS,
        "mscale": FACTORS,
        "mscale_all_dim": FACTORS,
        "attention_factor": FACTORS,
        "truncate": st.booleans(),
    },
)
LAYERED = st.dictionaries(
    st.sampled_from(["full_attention", "sliding_attention"]), SCALARS | ROPE, min_size=1
)
SCALING = st.fixed_dictionaries({}, optional={"rope_scaling": ROPE, "rope_parameters": ROPE})
NESTED = st.fixed_dictionaries({"rope_parameters": LAYERED}, optional={"rope_scaling": ROPE})

every_architecture = pytest.mark.parametrize("architecture", Architecture)


def parse_changed(architecture: Architecture, changes: dict[str, Any]) -> ModelConfig | None:
    """The tiny config with *changes*, None for a LoadError."""
    vision = architecture is Architecture.GEMMA3_VISION
    family = "gemma3-vision" if vision else FAMILIES[architecture].__name__.lower()
    config = make_config(family)
    config.get("text_config", config).update(changes)
    try:
        return parse_config(json.dumps(config).encode())
    except LoadError:
        return None


@every_architecture
@examples(200)
@given(changes=CHANGES)
def test_any_value_of_any_key(architecture: Architecture, changes: dict[str, Any]) -> None:
    parsed = parse_changed(architecture, changes)
    if parsed is not None:
        assert len(parsed.ropes) == len(parsed.windows) == parsed.layers


@every_architecture
@examples(200)
@given(changes=SCALING | NESTED)
def test_any_rope_turns_by_finite_angles(
    architecture: Architecture, changes: dict[str, Any]
) -> None:
    parsed = parse_changed(architecture, changes)
    for rope in set(parsed.ropes if parsed is not None else ()):
        assert frequencies(rope, 32).isfinite().all()
