"""What the contestants are given."""

from bench.engine.loads import LOADS, Kind, Load, prompts, requests

VOCAB = 151_936


def test_two_samples_never_share_a_block() -> None:
    load = Load("decode", Kind.DECODE, batch=3, context=32)
    made = [tuple(prompt[:16]) for seed in range(4) for prompt in prompts(load, seed, VOCAB)]
    assert len(set(made)) == 12
    assert prompts(load, 1, VOCAB) == prompts(load, 1, VOCAB)


def test_prefix_shares_exactly_the_context() -> None:
    first, second = requests(Load("p", Kind.PREFIX, context=512), 0, VOCAB)
    assert first.prompt[:512] == second.prompt[:512]
    assert first.prompt[512:] != second.prompt[512:]
    assert second.arrival_seconds is None


def test_mixed_requests_arrive_at_the_rate_in_order() -> None:
    made = requests(Load("m", Kind.MIXED, batch=2000, rate=0.5), 0, VOCAB)
    arrivals = [r.arrival_seconds for r in made if r.arrival_seconds is not None]
    assert arrivals == sorted(arrivals)
    assert 3600 < arrivals[-1] < 4400
    lengths = [len(r.prompt) for r in made]
    assert (min(lengths), max(lengths)) == (32, 512)
    assert {r.max_tokens for r in made} == set(range(16, 65))


def test_names_are_unique_and_tokens_fit_small_vocabularies() -> None:
    assert len({load.name for load in LOADS}) == len(LOADS)
    assert max(max(p) for p in prompts(Load("", Kind.DECODE, batch=9), 0, 320)) < 320
