"""Log-probabilities are those of log_softmax, in a documented order, and the same in any batch."""

import msgspec
import pytest
import torch

from neuron.engine.sampling.logprobs import SLICE_BYTES, logprobs, slice_rows
from neuron.ipc.messages import FromEngine, Logprobs, Output, Step


def random_logits(rows: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3)) * scale


@pytest.mark.parametrize("vocab", [7, 320, 33_001])
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 1e4])
def test_values_are_those_of_log_softmax(vocab: int, scale: float) -> None:
    logits = random_logits(6, vocab, scale)
    tokens = [0, 1, 2, 3, 4, vocab - 1]
    wanted = logits.double().log_softmax(-1)
    for row, (found, token) in enumerate(
        zip(logprobs(logits, tokens, [5] * 6), tokens, strict=True)
    ):
        assert found.token == pytest.approx(float(wanted[row, token]), abs=2e-6)
        values, ids = wanted[row].sort(descending=True, stable=True)
        assert [token for token, _ in found.top] == ids[:5].tolist()
        assert [value for _, value in found.top] == pytest.approx(values[:5].tolist(), abs=2e-6)


def test_equal_logits_rank_by_id() -> None:
    logits = torch.zeros(1, 500)
    logits[0, [400, 17, 250]] = 2.0
    (found,) = logprobs(logits, [3], [6])
    assert [token for token, _ in found.top] == [17, 250, 400, 0, 1, 2]


def test_each_row_has_as_many_as_it_asked_for() -> None:
    found = logprobs(random_logits(4, 300), [1, 2, 3, 4], [0, 1, 20, 3])
    assert [len(one.top) for one in found] == [0, 1, 20, 3]
    assert logprobs(random_logits(0, 300), [], []) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_batch(threads: int) -> None:
    logits = random_logits(9, 151_936, 1.0)
    alone = [logprobs(logits[i : i + 1], [i], [20])[0] for i in range(9)]
    torch.set_num_threads(threads)
    try:
        for row in range(9):
            assert logprobs(logits[row : row + 1], [row], [20]) == alone[row : row + 1]
        for size in range(1, 10):
            assert logprobs(logits[:size], list(range(size)), [20] * size) == alone[:size]
    finally:
        torch.set_num_threads(1)


def test_slices_stay_within_their_bound() -> None:
    assert (
        slice_rows(151_936) * 151_936 * 4 <= SLICE_BYTES < (slice_rows(151_936) + 1) * 151_936 * 4
    )
    assert slice_rows(10**9) == 1


def test_they_survive_the_channel_and_cost_nothing_when_absent() -> None:
    scores = [Logprobs(-0.25, [(7, -0.25), (151_935, -3.5)])]
    step = Step(1, 1, 0.1, [Output(1, 0, [7], logprobs=scores, prompt_logprobs=[])])
    message = msgspec.msgpack.encode(step)
    assert msgspec.msgpack.decode(message, type=FromEngine) == step
    assert b"logprobs" not in msgspec.msgpack.encode(Step(1, 1, 0.1, [Output(1, 0, [7])]))
    numbers = msgspec.msgpack.encode(Logprobs(-1.5, [(151_935, -3.5)] * 20))
    assert len(numbers) <= 21 * 15, "the bound on prompt_logprobs counts on this"
