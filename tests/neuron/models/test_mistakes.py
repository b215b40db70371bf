"""The oracle notices mistakes: a family computed slightly wrong exceeds the tolerance."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from neuron.models.config import ModelConfig, load_config
from neuron.models.traits import Activation, Traits
from tests.neuron.models.oracle import TOLERANCE, Oracle, distance, prompt
from tests.neuron.models.variants import VARIANTS
from tests.support.rigs import Rig
from tests.support.tiny_models import write_checkpoint

TOKENS = prompt(75)
Mistake = Callable[[ModelConfig], ModelConfig]


def misread(**changes: object) -> Mistake:
    return lambda config: msgspec.structs.replace(config, **changes)


def trait(**changes: object) -> Mistake:
    def mistake(config: ModelConfig) -> ModelConfig:
        traits: Traits = msgspec.structs.replace(config.traits, **changes)
        return msgspec.structs.replace(config, traits=traits)

    return mistake


def wider_windows(config: ModelConfig) -> ModelConfig:
    windows = tuple(window and window + 1 for window in config.windows)
    return msgspec.structs.replace(config, windows=windows)


def moved_windows(config: ModelConfig) -> ModelConfig:
    return msgspec.structs.replace(config, windows=config.windows[1:] + config.windows[:1])


def larger_theta(config: ModelConfig) -> ModelConfig:
    """As if each base were 1 % larger."""
    ropes = tuple(msgspec.structs.replace(rope, theta=1.01 * rope.theta) for rope in config.ropes)
    return msgspec.structs.replace(config, ropes=ropes)


def one_rope(config: ModelConfig) -> ModelConfig:
    """As if the layers with a window had the base of the others."""
    full = config.ropes[config.windows.index(None)]
    return msgspec.structs.replace(config, ropes=(full,) * config.layers)


@pytest.mark.parametrize(
    ("variant", "mistake"),
    [
        ("qwen3-window", larger_theta),
        ("qwen3-window", misread(norm_eps=1e-4)),
        ("qwen3-window", wider_windows),
        ("qwen3-window", moved_windows),
        ("qwen3-window", trait(attention_scale=33**-0.5)),
        ("llama-llama3", larger_theta),
        ("llama-plain", trait(activation=Activation.GELU_TANH)),
        ("mistral-window", wider_windows),
        ("mistral-window", misread(windows=(None,) * 3)),
        ("qwen2-window", wider_windows),
        ("gemma3-pattern", trait(offset_norms=False)),
        ("gemma3-pattern", trait(scaled_embedding=False)),
        ("gemma3-pattern", trait(attention_scale=None)),
        ("gemma3-pattern", trait(activation=Activation.SILU)),
        ("gemma3-pattern", wider_windows),
        ("gemma3-pattern", moved_windows),
        ("gemma3-pattern", larger_theta),
        ("gemma3-pattern", one_rope),
        ("gemma3-long", one_rope),
        ("gemma3-logit-cap", trait(logit_cap=None)),
        ("gemma3-logit-cap", trait(logit_cap=2.6)),
    ],
)
def test_a_misread_config_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, mistake: Mistake
) -> None:
    chosen = VARIANTS[variant]
    folder = write_checkpoint(tmp_path, chosen.family, **chosen.changes)
    theirs = Oracle(folder).logits(TOKENS)
    assert distance(logits(Rig(folder)), theirs) <= TOLERANCE
    monkeypatch.setattr("tests.support.rigs.load_config", lambda path: mistake(load_config(path)))
    assert distance(logits(Rig(folder)), theirs) > 2 * TOLERANCE


@pytest.mark.parametrize(
    ("variant", "bias"),
    [
        ("qwen2-tied", "q_proj.bias"),
        ("qwen2-tied", "v_proj.bias"),
        ("llama-all-biases", "o_proj.bias"),
        ("llama-all-biases", "up_proj.bias"),
        ("llama-all-biases", "down_proj.bias"),
    ],
)
def test_a_missing_bias_shows(tmp_path: Path, variant: str, bias: str) -> None:
    chosen = VARIANTS[variant]
    folder = write_checkpoint(tmp_path, chosen.family, **chosen.changes)
    rig = Rig(folder, reference=True)
    biases = [slot.target for name, slot in rig.model.slots().items() if name.endswith(bias)]
    assert len(biases) == 3
    for slot in biases:
        slot.zero_()
    assert distance(logits(rig), Oracle(folder).logits(TOKENS)) > 2 * TOLERANCE


def logits(rig: Rig) -> torch.Tensor:
    (all_rows,) = rig.logits((rig.sequence(TOKENS), len(TOKENS)))
    return all_rows
