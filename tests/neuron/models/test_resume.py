"""Sampled answers depend on seed and position only: they resume where they stopped."""

from pathlib import Path

import pytest

from neuron.engine.sampling.sampler import SampleRow, sample_tokens
from neuron.ipc.messages import SamplingParams
from tests.neuron.models.oracle import prompt
from tests.support.rigs import Rig
from tests.support.tiny_models import write_checkpoint


@pytest.mark.parametrize("seed", range(3))
def test_sampling_resumes_where_it_stopped(tmp_path: Path, seed: int) -> None:
    rig = Rig(write_checkpoint(tmp_path))
    sample = SamplingParams(max_tokens=100, temperature=1.0, seed=seed)
    tokens = prompt(20, seed)
    whole = rig.sequence(tokens, sample=sample, room=60)
    answer = rig.generate(whole, 60)
    for kept in (1, 7, 33, 59):
        resumed = rig.sequence(tokens + answer[:kept], sample=sample, room=60)
        resumed.prompt_tokens = len(tokens)
        assert rig.generate(resumed, 60 - kept) == answer[kept:]
        rig.pool.free(resumed.blocks)


def test_seed_and_position_decide_the_answer(tmp_path: Path) -> None:
    rig = Rig(write_checkpoint(tmp_path))
    tokens = prompt(20)

    def answer(seed: int, shift: int = 0) -> tuple[int, ...]:
        """*shift* pretends that the answer began that many tokens later."""
        sample = SamplingParams(max_tokens=100, temperature=1.0, seed=seed)
        sequence = rig.sequence(tokens, sample=sample, room=20)
        for _ in range(20):
            (token,) = sample_tokens(
                rig.logits((sequence, sequence.remaining))[0][-1:],
                [SampleRow(sample, sequence.total + shift, 0)],
            ).tolist()
            sequence.tokens.append(token)
        rig.pool.free(sequence.blocks)
        return tuple(sequence.tokens[20:])

    answers = {answer(seed) for seed in range(50)}
    assert len(answers) == 50
    assert answer(7) in answers
    assert answer(7, shift=1) not in answers
