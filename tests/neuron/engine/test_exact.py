"""Exact mode: a token's logits are the same to the bit, whatever else happens in the engine.

The models have random weights, so that a rounding difference changes tokens at temperature 1
sooner or later; where logits are compared, every bit counts at once.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from neuron.engine.engine import Engine
from neuron.engine.loader import load_engine
from neuron.engine.machine import kernel_probe
from neuron.ipc.messages import Add, Ready, SamplingParams, Start
from neuron.layers import tiles
from neuron.layers.linear import Kernel, LinearPlan, linear, pack
from neuron.models.config import load_config
from neuron.models.errors import LoadCode, LoadError
from tests.support.rigs import Rig
from tests.support.tiny_models import FAMILIES, write_checkpoint

DTYPES = ["float32", "bfloat16"]


def load(folder: Path, **start: Any) -> tuple[Engine, Ready]:
    return load_engine(Start(str(folder), threads=1, **start), lambda _: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        family: write_checkpoint(root / family, family, num_hidden_layers=2) for family in FAMILIES
    }


# -- logits --------------------------------------------------------------------------------------

TOKENS = 600
"""Beyond two tiles."""


def whole(rig: Rig, tokens: list[int]) -> torch.Tensor:
    sequence = rig.sequence(tokens)
    (logits,) = rig.logits((sequence, len(tokens)))
    rig.pool.free(sequence.blocks)
    return logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_do_not_depend_on_chunks_batch_or_place(
    models: dict[str, Path], family: str, dtype: str
) -> None:
    torch.set_num_threads(1)
    chance = random.Random(family)
    rig = Rig(models[family], dtype=getattr(torch, dtype), blocks=400)
    assert rig.path.exact
    tokens = chance.choices(range(250), k=TOKENS)
    expected = whole(rig, tokens)
    others = [chance.choices(range(250), k=length) for length in (300, 37, 520)]
    answers = [whole(rig, other) for other in others]
    for scattered in (False, True):
        mine = rig.sequence(tokens, scattered=scattered)
        rest = [rig.sequence(other, scattered=not scattered) for other in others]
        while mine.remaining:
            beside = [one for one in rest if one.remaining and chance.random() < 0.5]
            parts = [(mine, min(mine.remaining, chance.choice((1, 1, 2, 3, 16, 47, 200))))]
            parts += [(one, min(one.remaining, chance.choice((1, 1, 5, 60)))) for one in beside]
            parts.sort(key=lambda part: part[1] > 1)  # singles first, as in a step
            begins = {one.id: one.computed for one, _ in parts}
            for (one, count), logits in zip(parts, rig.logits(*parts), strict=True):
                right = expected if one is mine else answers[rest.index(one)]
                begin = begins[one.id]
                assert torch.equal(logits, right[begin : begin + count]), (one.id, begin, count)
        for one in (mine, *rest):
            rig.pool.free(one.blocks)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_computes_the_same(models: dict[str, Path], family: str, exact: bool) -> None:
    torch.set_num_threads(1)
    tokens = random.Random(family).choices(range(250), k=TOKENS)
    expected = whole(Rig(models[family], reference=True), tokens)
    rig = Rig(models[family], exact=exact)
    for scattered in (False, True):
        sequence = rig.sequence(tokens, scattered=scattered)
        logits: list[torch.Tensor] = []
        for count in (290, 1, 16, 1, 292):
            logits += rig.logits((sequence, count))
        error = (torch.cat(logits) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()


def test_without_exact_the_same_comparison_fails(models: dict[str, Path]) -> None:
    """Else the test above would prove nothing."""
    torch.set_num_threads(1)
    rig = Rig(models["qwen3"], exact=False)
    tokens = random.Random(1).choices(range(250), k=TOKENS)
    expected = whole(rig, tokens)
    sequence = rig.sequence(tokens)
    logits = [rig.logits((sequence, 1))[0] for _ in tokens]
    assert not torch.equal(torch.cat(logits), expected)
    assert torch.allclose(torch.cat(logits), expected, atol=1e-4)


# -- whole answers ---------------------------------------------------------------------------------

BLOCKS = 40
"""Of the small cache: a few tiles, which eight running sequences fight for."""
KINDS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 0.7, "top_k": 50, "frequency_penalty": 0.4},
    {"temperature": 0.0},
    {"temperature": 1.0, "end_tokens": tuple(range(0, 320, 9)), "repetition_penalty": 1.2},
]


def requests() -> Iterator[Add]:
    """Forty prompts of 1 to 310 tokens, some with a common beginning; all kinds of sampling."""
    chance = random.Random(5)
    beginnings = [chance.choices(range(250), k=length) for length in (20, 60, 270)]
    for number in range(40):
        own = chance.choices(range(250), k=chance.choice((1, 5, 16, 40)))
        prompt = (chance.choice([[], [], *beginnings]) + own)[: chance.choice((310, 256, 33))]
        sample = SamplingParams(
            chance.choice((1, 8, 25, 50)), seed=number, **KINDS[number % len(KINDS)]
        )
        yield Add(number, prompt, sample)


class Alone:
    """The answers of an engine that is given one request at a time and computes all of it."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._engine, _ = load(folder, dtype=dtype, max_running=1)
        self._answers: dict[int, list[int]] = {}
        self.adds = {add.id: add for add in requests()}

    def answer(self, number: int) -> list[int]:
        if number not in self._answers:
            add, found = self.adds[number], list[int]()
            # Whoever wants scores of the prompt takes nothing from the cache.
            uncached = msgspec.structs.replace(add.sample, prompt_logprobs=0)
            self._engine.add(Add(number, add.prompt, uncached))
            while self._engine.has_work:
                for output in self._engine.step().outputs:
                    found += output.tokens
            self._answers[number] = found
        return self._answers[number]


class Schedule:
    """One random schedule on an engine that is kept from schedule to schedule, cache and all."""

    def __init__(self, engine: Engine, alone: Alone, chance: random.Random, first_id: int) -> None:
        self._engine, self._alone, self._chance = engine, alone, chance
        self._next_id = first_id
        self._open: dict[int, tuple[int, list[int]]] = {}  # id → (request, tokens so far)
        self.preemptions = 0
        self.cached = 0

    def run(self, actions: int) -> int:
        """Returns the next free id."""
        for _ in range(actions):
            draw = self._chance.random()
            if draw < 0.5:
                self._add()
            elif draw < 0.56 and self._open:
                self._engine.abort(self._abandon(self._chance.choice(list(self._open))))
            elif draw < 0.62:
                self._preempt()
            else:
                self._step()
        while self._engine.has_work:
            self._step()
        assert not self._open, "somebody was forgotten"
        assert self._engine._pool.free_blocks == self._engine._pool.total, "a block has leaked"
        return self._next_id

    def _add(self) -> None:
        number = self._chance.randrange(40)
        request, self._next_id = self._alone.adds[number], self._next_id + 1
        kept: list[int] = []
        if self._chance.random() < 0.3:  # resumed from another engine, somewhere
            answer = self._alone.answer(number)
            kept = answer[: self._chance.randrange(len(answer))]
        add = Add(self._next_id, request.prompt, request.sample, kept)
        if self._engine.add(add) is None:
            self._open[add.id] = (number, list(kept))

    def _preempt(self) -> None:
        """As if the blocks had run out, which the scheduler's reserves make rare."""
        running = list(self._engine._scheduler._running.values())
        if running:
            self._engine._scheduler._preempt(self._chance.choice(running))

    def _abandon(self, sequence: int) -> int:
        number, tokens = self._open.pop(sequence)
        assert tokens == self._alone.answer(number)[: len(tokens)]
        return sequence

    def _step(self) -> None:
        step = self._engine.step()
        self.preemptions = step.preemptions
        for output in step.outputs:
            number, tokens = self._open[output.id]
            assert output.index == len(tokens)
            tokens += output.tokens
            self.cached += output.cached
            if output.finish is not None:
                assert tokens == self._alone.answer(number), (number, output.finish)
                del self._open[output.id]


def random_schedules(folder: Path, dtype: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    per_token = load_config(folder).kv_bytes_per_token(getattr(torch, dtype).itemsize)
    engine, ready = load(
        folder,
        dtype=dtype,
        kv_cache_bytes=BLOCKS * 16 * per_token,
        max_step_tokens=128,
        max_running=12,
    )
    assert ready.exact
    assert ready.kv_cache_tokens == BLOCKS * 16
    alone, chance = Alone(folder, dtype), random.Random(seed)
    next_id, cached = 1000, 0
    for _ in range(count):
        schedule = Schedule(engine, alone, chance, next_id)
        next_id = schedule.run(chance.randrange(5, 30))
        cached += schedule.cached
    assert schedule.preemptions > count / 2
    assert cached > 100 * count


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_schedules_change_no_token(models: dict[str, Path], dtype: str) -> None:
    random_schedules(models["qwen3"], dtype, 8, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_thousands_of_random_schedules_change_no_token(
    models: dict[str, Path], family: str, dtype: str
) -> None:
    random_schedules(models[family], dtype, 500, seed=list(FAMILIES).index(family) + 7)


# -- what is promised where it cannot be kept ------------------------------------------------------


def test_a_kernel_that_rounds_by_batch_is_found_out(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LinearPlan
    ) -> torch.Tensor:
        return linear(x, weight, bias, plan) * (1 + 1e-7 * (len(x) == 3))

    monkeypatch.setattr(kernel_probe, "linear", careless)
    _, ready = load(models["qwen3"])
    assert not ready.exact
    assert "inexact" in ready.numerics
    assert any("round differently" in note for note in ready.notes)
    with pytest.raises(LoadError, match="cannot be computed exactly") as caught:
        load(models["qwen3"], exact=True)
    assert caught.value.code is LoadCode.UNSUPPORTED


def test_a_kernel_that_is_exact_from_two_rows_on_gets_two(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.ops.mkldnn._linear_pointwise

    def alone(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        out: torch.Tensor = real(x, *rest) * (1 + 1e-7 * (len(x) == 1))
        return out

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", alone)
    rig = Rig(models["qwen3"])
    assert (rig.path.linear.least_rows, rig.path.exact) == (2, True)


def test_attention_that_rounds_by_batch_is_found_out(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors that round so below four queries; on those that do not, as if they did."""
    real = tiles._flash

    def careless(queries: torch.Tensor, *rest: Any, **named: Any) -> Any:
        out, scale = real(queries, *rest, **named)
        return out * (1 + 1e-6 * (queries.shape[-2] % 4)), scale

    monkeypatch.setattr(tiles, "_flash", careless)
    assert load(models["qwen3"])[1].exact
    monkeypatch.setattr(tiles, "ROWS", 1)
    _, ready = load(models["qwen3"])
    assert not ready.exact
    assert any("attention" in note for note in ready.notes)


def test_without_packed_kernels_the_plain_ones_are_used_and_it_is_said(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise RuntimeError("mkldnn: no such thing here")

    monkeypatch.setattr(kernel_probe, "pack", missing)
    _, ready = load(models["qwen3"])
    assert "plain" in ready.numerics
    assert "no packed float32 kernels" in ready.notes[0]


def test_a_packed_kernel_that_computes_nonsense_is_not_used(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_probe, "pack", lambda weight: pack(weight * 1.01))
    rig = Rig(models["qwen3"])
    assert rig.path.linear.kernel is Kernel.PLAIN


def test_the_reference_path_promises_nothing(models: dict[str, Path]) -> None:
    _, ready = load(models["qwen3"], reference=True)
    assert not ready.exact
    assert "reference" in ready.numerics
    with pytest.raises(LoadError, match="cannot be computed exactly"):
        load(models["qwen3"], reference=True, exact=True)
