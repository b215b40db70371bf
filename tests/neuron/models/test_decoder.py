"""Every family computes what transformers computes, however the tokens are cut into steps."""

from pathlib import Path

import pytest
import torch

from tests.neuron.models.oracle import TOLERANCE, Oracle, distance, prompt
from tests.neuron.models.variants import VARIANTS, Variant
from tests.support.rigs import Rig
from tests.support.tiny_models import write_checkpoint

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


def some(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("variant", [VARIANTS[name] for name in names], ids=names)


@every_variant
def test_logits_equal_transformers(tmp_path: Path, variant: Variant) -> None:
    folder = write_checkpoint(tmp_path, variant.family, **variant.changes)
    rig, oracle = Rig(folder), Oracle(folder)
    tokens, others = prompt(75), prompt(40, seed=1)
    theirs, theirs_other = oracle.logits(tokens), oracle.logits(others)
    assert theirs.std() > 0.3, "flat logits would hide mistakes"

    (full,) = rig.logits((rig.sequence(tokens), 75))
    assert distance(full, theirs) <= TOLERANCE

    chunked = rig.sequence(tokens, scattered=True)
    pieces = [rig.logits((chunked, count))[0] for count in (16, 1, 30, 28)]
    assert distance(torch.cat(pieces), theirs) <= TOLERANCE

    single = rig.sequence(tokens, scattered=True)
    steps = [rig.logits((single, 1))[0] for _ in tokens]
    assert distance(torch.cat(steps), theirs) <= TOLERANCE

    stepwise, companion = rig.sequence(tokens), rig.sequence(others, scattered=True)
    rows = [rig.logits((stepwise, 60))[0]]
    companions = []
    for count in (20, 1, 1, 3, 15):  # decode beside another sequence's prefill and decode
        one, other = rig.logits((stepwise, 1), (companion, count))
        rows.append(one)
        companions.append(other)
    assert distance(torch.cat(rows), theirs[:65]) <= TOLERANCE
    assert distance(torch.cat(companions), theirs_other) <= TOLERANCE


@some(
    "qwen3-tied-gqa2",
    "qwen3-window",
    "qwen3-yarn-old",
    "llama-plain",
    "llama-all-biases",
    "mistral-window",
    "qwen2-tied",
    "gemma3-pattern",
    "gemma3-logit-cap",
    "gemma3-vision-old-names",
)
def test_bfloat16_is_as_close_as_transformers(tmp_path: Path, variant: Variant) -> None:
    """By the root mean square over all logits of eight prompts, which has little noise."""
    folder = write_checkpoint(tmp_path, variant.family, dtype=torch.bfloat16, **variant.changes)
    ours = theirs = 0.0
    exact_oracle, oracle = Oracle(folder), Oracle(folder, torch.bfloat16)
    rig = Rig(folder, dtype=torch.bfloat16)
    for seed in range(8):
        tokens = prompt(75, seed)
        exact = exact_oracle.logits(tokens)
        (full,) = rig.logits((sequence := rig.sequence(tokens), 75))
        rig.pool.free(sequence.blocks)
        ours += float((full - exact).square().sum())
        theirs += float((oracle.logits(tokens) - exact).square().sum())
    assert ours**0.5 <= 1.25 * theirs**0.5


@some(
    "qwen3-tied-gqa2",
    "qwen3-window-types",
    "qwen3-llama3-new",
    "llama-plain",
    "llama-all-biases",
    "mistral-window",
    "qwen2-window",
    "gemma3-pattern",
    "gemma3-vision-new-names",
)
def test_greedy_tokens_equal_generate(tmp_path: Path, variant: Variant) -> None:
    folder = write_checkpoint(tmp_path, variant.family, **variant.changes)
    tokens = prompt(30)
    rig = Rig(folder)
    ours = rig.generate(rig.sequence(tokens, room=100), 100)
    assert ours == Oracle(folder).generate(tokens, 100)
    assert len(set(ours)) > 3, "a constant answer would prove little"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_scaled_by_a_rounded_root(tmp_path: Path, dtype: torch.dtype) -> None:
    """Equal to the bit: the root of 56 is 7.48 in float32 and 7.5 in bfloat16."""
    folder = write_checkpoint(tmp_path, "gemma3", hidden_size=56, dtype=dtype)
    model, tokens = Rig(folder, dtype=dtype).model, torch.tensor(prompt(75))
    assert model.embedding_scale is not None
    theirs = Oracle(folder, dtype).model.get_input_embeddings()(tokens)
    assert torch.equal(model.embedding(tokens) * model.embedding_scale, theirs)
