"""Our Qwen3 computes what transformers' computes, however the tokens are cut into steps."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from neuron.engine.messages import Sample
from neuron.engine.sampler import SampleRow, sample_tokens
from neuron.models.qwen3 import Qwen3Attention
from tests.support.rigs import Rig
from tests.support.tiny_models import write_checkpoint

TOLERANCE = 1e-5

YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
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
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
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

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    def make(**changes: Any) -> Path:
        return write_checkpoint(tmp_path / "model", **changes)

    return make


def prompt(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(320) for _ in range(count)]


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@torch.inference_mode()
def expected_logits(model: Qwen3ForCausalLM, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_transformers(make_folder: MakeFolder, changes: dict[str, Any]) -> None:
    folder = make_folder(**changes)
    rig, model = Rig(folder), oracle(folder)
    tokens, others = prompt(75), prompt(40, seed=1)
    theirs, theirs_other = expected_logits(model, tokens), expected_logits(model, others)
    assert theirs.std() > 0.3, "flat logits would hide mistakes"

    (full,) = rig.logits((rig.sequence(tokens), 75))
    assert distance(full, theirs) <= TOLERANCE

    chunked = rig.sequence(tokens, scattered=True)
    pieces = [rig.logits((chunked, count))[0] for count in (16, 1, 30, 28)]
    assert distance(torch.cat(pieces), theirs) <= TOLERANCE

    stepwise, companion = rig.sequence(tokens), rig.sequence(others, scattered=True)
    rows = [rig.logits((stepwise, 60))[0]]
    companions = []
    for count in (20, 1, 1, 3, 15):  # decode beside another sequence's prefill and decode
        one, other = rig.logits((stepwise, 1), (companion, count))
        rows.append(one)
        companions.append(other)
    assert distance(torch.cat(rows), theirs[:65]) <= TOLERANCE
    assert distance(torch.cat(companions), theirs_other) <= TOLERANCE


def slightly_wrong_theta(rig: Rig) -> None:
    """As if the base were 1 % larger."""
    half = rig.config.head_dim // 2
    exponents = torch.arange(half) / half
    rig.model.frequencies.mul_(1.01**-exponents)


def slightly_wrong_eps(rig: Rig) -> None:
    rig.model.norm.eps = 1e-4


def slightly_wrong_window(rig: Rig) -> None:
    for module in rig.model.modules():
        if isinstance(module, Qwen3Attention) and module.window is not None:
            module.window += 1
            rig.runner._windows.add(module.window)


@pytest.mark.parametrize(
    "mistake", [slightly_wrong_theta, slightly_wrong_eps, slightly_wrong_window]
)
def test_the_oracle_notices_small_mistakes(
    make_folder: MakeFolder, mistake: Callable[[Rig], None]
) -> None:
    folder = make_folder(**VARIANTS["window"])
    theirs = expected_logits(oracle(folder), prompt(75))
    rig = Rig(folder)
    assert distance(rig.logits((rig.sequence(prompt(75)), 75))[0], theirs) <= TOLERANCE
    mistake(rig)
    assert distance(rig.logits((rig.sequence(prompt(75)), 75))[0], theirs) > 2 * TOLERANCE


@pytest.mark.parametrize("name", ["tied-gqa2", "window", "yarn-old"])
def test_bfloat16_is_as_close_as_transformers(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder(dtype=torch.bfloat16, **VARIANTS[name])
    ours = theirs = 0.0
    exact_model, model = oracle(folder), oracle(folder, torch.bfloat16)
    rig = Rig(folder, dtype=torch.bfloat16)
    for seed in range(6):
        tokens = prompt(75, seed)
        exact = expected_logits(exact_model, tokens)
        (full,) = rig.logits((sequence := rig.sequence(tokens), 75))
        rig.pool.give_back(sequence.blocks)
        ours += float((full - exact).norm())
        theirs += float((expected_logits(model, tokens) - exact).norm())
    assert ours <= 1.25 * theirs


@pytest.mark.parametrize("name", ["tied-gqa2", "window-types", "llama3-new"])
def test_greedy_tokens_equal_generate(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder(**VARIANTS[name])
    tokens = prompt(30)
    model = oracle(folder)
    theirs = model.generate(
        torch.tensor([tokens]),
        max_new_tokens=200,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 30:].tolist()
    rig = Rig(folder)
    ours = rig.generate(rig.sequence(tokens, room=200), 200)
    assert ours == theirs
    assert len(set(ours)) > 3, "a constant answer would prove little"


@pytest.mark.parametrize("seed", range(3))
def test_sampling_resumes_where_it_stopped(make_folder: MakeFolder, seed: int) -> None:
    rig = Rig(make_folder())
    sample = Sample(max_tokens=100, temperature=1.0, seed=seed)
    tokens = prompt(20, seed)
    whole = rig.sequence(tokens, sample=sample, room=60)
    answer = rig.generate(whole, 60)
    for kept in (1, 7, 33, 59):
        resumed = rig.sequence(tokens + answer[:kept], sample=sample, room=60)
        resumed.prompt_tokens = len(tokens)
        assert rig.generate(resumed, 60 - kept) == answer[kept:]
        rig.pool.give_back(resumed.blocks)


def test_seed_and_position_decide_the_answer(make_folder: MakeFolder) -> None:
    rig = Rig(make_folder())
    tokens = prompt(20)

    def answer(seed: int, shift: int = 0) -> tuple[int, ...]:
        """*shift* pretends that the answer began that many tokens later."""
        sample = Sample(max_tokens=100, temperature=1.0, seed=seed)
        sequence = rig.sequence(tokens, sample=sample, room=20)
        for _ in range(20):
            (token,) = sample_tokens(
                rig.logits((sequence, sequence.remaining))[0][-1:],
                [SampleRow(sample, sequence.total + shift, 0)],
            ).tolist()
            sequence.tokens.append(token)
        rig.pool.give_back(sequence.blocks)
        return tuple(sequence.tokens[20:])

    answers = {answer(seed) for seed in range(50)}
    assert len(answers) == 50
    assert answer(7) in answers
    assert answer(7, shift=1) not in answers
