"""Answers of a random-weight model: the same alone, together, resumed anywhere, chunked anyhow."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron.engine.engine import Engine
from neuron.engine.loader import load_engine
from neuron.engine.runner import PoisonedLogits
from neuron.engine.sampling import logprobs as scoring
from neuron.engine.sampling.sampler import SampleRow
from neuron.ipc.messages import Add, Logprobs, Output, SamplingParams, Start
from tests.support.rigs import Rig
from tests.support.tiny_models import write_checkpoint

KINDS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": 0.3},
    {"temperature": 0.8, "repetition_penalty": 1.4, "logit_bias": ((65, 3.0),)},
    {"temperature": 1.0, "min_tokens": 20, "end_tokens": tuple(range(0, 320, 3))},
    {"temperature": 1.0, "top_k": 40, "bad_tokens": tuple(range(100))},
    {"temperature": 1.3, "allowed_tokens": tuple(range(100, 200)), "min_p": 0.01},
    {"frequency_penalty": 0.5},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def load(folder: Path, **start: Any) -> Engine:
    engine, _ = load_engine(Start(str(folder), threads=1, **start), lambda _: None)
    return engine


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(250), k=length)


def answers(engine: Engine, adds: list[Add]) -> dict[int, list[Output]]:
    """Runs them together."""
    for add in adds:
        assert engine.add(add) is None
    found: dict[int, list[Output]] = {add.id: [] for add in adds}
    while engine.has_work:
        for output in engine.step().outputs:
            found[output.id].append(output)
    return found


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_resumed_at_random_positions_an_answer_goes_on_as_it_was(
    checkpoint: Path, kind: int
) -> None:
    engine, rng = load(checkpoint), random.Random(kind)
    for seed in range(3):
        sample = SamplingParams(40, seed=seed, logprobs=2, **KINDS[kind])
        whole = answers(engine, [Add(1, prompt(20, seed), sample)])[1]
        for kept in rng.sample(range(1, len(tokens(whole))), 4):
            add = Add(2, prompt(20, seed), sample, tokens(whole)[:kept])
            rest = answers(engine, [add])[2]
            assert tokens(rest) == tokens(whole)[kept:]
            assert [o.index for o in rest] == [o.index for o in whole[kept:]]


def test_it_does_not_matter_what_of_the_answer_is_called_prompt(checkpoint: Path) -> None:
    engine, sample = load(checkpoint), SamplingParams(40, temperature=1.0, seed=3)
    whole = tokens(answers(engine, [Add(1, prompt(20), sample)])[1])
    longer = Add(2, prompt(20) + whole[:15], sample)
    assert tokens(answers(engine, [longer])[2])[:25] == whole[15:]


def test_one_position_off_an_answer_goes_another_way(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the tests above can fail."""
    engine, sample = load(checkpoint), SamplingParams(40, temperature=1.0, seed=3)
    whole = tokens(answers(engine, [Add(1, prompt(20), sample)])[1])
    resumed = Add(2, prompt(20), sample, whole[:10])
    assert tokens(answers(engine, [resumed])[2]) == whole[10:]
    shifted = property(lambda row: row.prompt_tokens + row.generated + 1)
    monkeypatch.setattr(SampleRow, "position", shifted)
    assert tokens(answers(engine, [resumed])[2]) != whole[10:]


def test_together_all_kinds_answer_as_alone(checkpoint: Path) -> None:
    adds = [
        Add(
            number,
            prompt(10 + 7 * number, number),
            SamplingParams(30, seed=number, logprobs=3, **kind),
        )
        for number, kind in enumerate(KINDS)
    ]
    engine = load(checkpoint, max_step_tokens=32)
    together = answers(engine, adds)
    for add in adds:
        alone = answers(load(checkpoint), [add])[add.id]
        assert tokens(together[add.id]) == tokens(alone)
        assert len(set(tokens(alone))) > 3, "a constant answer would prove little"


def test_fifty_choices_differ_and_each_is_its_own(checkpoint: Path) -> None:
    engine = load(checkpoint, max_running=8)
    adds = [
        Add(choice, prompt(20), SamplingParams(16, temperature=1.0, seed=9, choice=choice))
        for choice in range(50)
    ]
    together = answers(engine, adds)
    assert len({tuple(tokens(outputs)) for outputs in together.values()}) == 50
    for add in adds[::7]:
        assert tokens(answers(engine, [add])[add.id]) == tokens(together[add.id])


def test_fifty_seeds_give_fifty_answers(checkpoint: Path) -> None:
    engine = load(checkpoint)
    adds = [Add(n, prompt(20), SamplingParams(16, temperature=1.0, seed=n)) for n in range(50)]
    assert len({tuple(tokens(o)) for o in answers(engine, adds).values()}) == 50


def test_every_token_is_reported_with_its_log_probability(checkpoint: Path) -> None:
    rig, sample = (
        Rig(checkpoint),
        SamplingParams(12, temperature=1.0, logprobs=4, logit_bias=((3, 2.0),)),
    )
    outputs = answers(load(checkpoint), [Add(1, prompt(20), sample)])[1]
    text = prompt(20) + tokens(outputs)
    wanted = rig.logits((rig.sequence(text), len(text)))[0].double().log_softmax(-1)
    for place, output in enumerate(outputs, 19):
        (found,) = output.logprobs
        assert found.token == pytest.approx(float(wanted[place, output.tokens[0]]), abs=1e-4)
        assert [token for token, _ in found.top] == wanted[place].topk(4).indices.tolist()
        assert output.prompt_logprobs is None


def prompt_logprobs(outputs: list[Output]) -> list[Logprobs]:
    assert [output.prompt_logprobs is not None for output in outputs[1:]] == [False] * (
        len(outputs) - 1
    )
    assert outputs[0].prompt_logprobs is not None
    return outputs[0].prompt_logprobs


@pytest.mark.parametrize("step", [512, 32, 9])
@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_prompts_are_scored_in_any_chunks_and_slices(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: int, rows: int
) -> None:
    monkeypatch.setattr(scoring, "SLICE_BYTES", rows * 320 * 4)
    rig, text = Rig(checkpoint), prompt(50)
    wanted = rig.logits((rig.sequence(text), 50))[0].double().log_softmax(-1)
    engine = load(checkpoint, max_step_tokens=step, max_running=8)
    asking = SamplingParams(3, prompt_logprobs=3)
    found = answers(engine, [Add(1, text, asking), Add(2, prompt(40, 1), SamplingParams(3))])
    scores = prompt_logprobs(found[1])
    assert len(scores) == 49
    for place, score in enumerate(scores):
        assert score.token == pytest.approx(float(wanted[place, text[place + 1]]), abs=1e-4)
        assert [token for token, _ in score.top] == wanted[place].topk(3).indices.tolist()
    assert found[2][0].prompt_logprobs is None


def test_prompt_scores_at_their_limits(checkpoint: Path) -> None:
    engine = load(checkpoint)
    assert (
        prompt_logprobs(answers(engine, [Add(1, [5], SamplingParams(2, prompt_logprobs=0))])[1])
        == []
    )
    scores = prompt_logprobs(
        answers(engine, [Add(1, [5, 6], SamplingParams(1, prompt_logprobs=0))])[1]
    )
    assert [score.top for score in scores] == [[]]


def test_a_resumed_answer_does_not_score_its_prompt_again(checkpoint: Path) -> None:
    add = Add(1, prompt(20), SamplingParams(5, prompt_logprobs=1), [1, 2])
    assert {o.prompt_logprobs is None for o in answers(load(checkpoint), [add])[1]} == {True}


def test_an_aborted_prompt_leaves_no_scores(checkpoint: Path) -> None:
    engine = load(checkpoint, max_step_tokens=16)
    engine.add(Add(1, prompt(60), SamplingParams(5, prompt_logprobs=1, frequency_penalty=1.0)))
    engine.step()
    engine.abort(1)
    assert engine._runner._prompt_logprobs._found == {}
    answers(
        engine, [Add(1, prompt(60), SamplingParams(5, prompt_logprobs=1, frequency_penalty=1.0))]
    )
    assert engine._runner._prompt_logprobs._found == {}
    assert engine._runner._processors._tables == {}


def test_a_poisoned_prompt_is_a_fault(checkpoint: Path) -> None:
    engine = load(checkpoint, max_step_tokens=16)
    engine._runner._forward.model.norm.weight.fill_(float("nan"))
    engine.add(Add(1, prompt(60), SamplingParams(5, prompt_logprobs=1)))
    with pytest.raises(PoisonedLogits, match="NaN"):
        engine.step()


def test_only_finite_numbers_leave(checkpoint: Path) -> None:
    sample = SamplingParams(
        8, logprobs=20, prompt_logprobs=20, allowed_tokens=(3,), bad_tokens=(4,)
    )
    outputs = answers(load(checkpoint), [Add(1, prompt(20), sample)])[1]
    scores = [score for output in outputs for score in output.logprobs] + prompt_logprobs(outputs)
    values = [v for score in scores for v in (score.token, *(value for _, value in score.top))]
    assert torch.tensor(values).isfinite().all()
    assert tokens(outputs) == [3] * 8
