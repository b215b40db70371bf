"""What a profile says goes before what the node says, in the estimate as in the engine."""

from typing import Any

import pytest

from neuron.config import Exact, NeuronConfig
from neuron.sizing.model_settings import ModelSettings
from protocol.catalogue import Limits, Profile

MIB = 1 << 20
NODE = NeuronConfig(
    dtype="float32", exact=Exact.ON, slots=6, max_context=9000, kv_cache_mb=300, threads=3
)
SILENT = Profile("m")


def test_a_node_that_says_nothing_leaves_everything_to_the_model() -> None:
    assert ModelSettings.resolve(SILENT, NeuronConfig()) == ModelSettings(
        dtype="auto",
        exact=None,
        slots=8,
        max_context=None,
        kv_cache_bytes=None,
        ranks=1,
        threads=None,
    )


def test_a_silent_profile_gets_the_nodes_settings() -> None:
    assert ModelSettings.resolve(SILENT, NODE) == ModelSettings(
        dtype="float32",
        exact=True,
        slots=6,
        max_context=9000,
        kv_cache_bytes=300 * MIB,
        ranks=1,
        threads=3,
    )


@pytest.mark.parametrize(
    ("said", "setting", "value"),
    [
        ({"dtype": "bfloat16"}, "dtype", "bfloat16"),
        ({"slots": 2}, "slots", 2),
        ({"limit": Limits(context=500)}, "max_context", 500),
        ({"kv_cache_mb": 70}, "kv_cache_bytes", 70 * MIB),
        ({"min_devices": 4}, "ranks", 4),
    ],
)
def test_what_a_profile_says_goes_before(said: dict[str, Any], setting: str, value: object) -> None:
    settings = ModelSettings.resolve(Profile("m", **said), NODE)
    by_node = ModelSettings.resolve(SILENT, NODE)
    assert settings._asdict() == {**by_node._asdict(), setting: value}


def test_ranks_share_the_kv_cache() -> None:
    shared = Profile("m", min_devices=4)
    assert ModelSettings.resolve(shared, NODE).kv_cache_bytes_each == 75 * MIB
    assert ModelSettings.resolve(shared, NeuronConfig()).kv_cache_bytes_each is None
