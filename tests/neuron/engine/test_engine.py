"""The engine without a process: what each step reports."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from neuron.engine import loader
from neuron.engine.engine import Engine
from neuron.engine.loader import load_engine
from neuron.engine.machine.kernel_probe import KernelPath, choose_path
from neuron.engine.runner import PoisonedLogits
from neuron.ipc.messages import Add, Output, SamplingParams, Start, Step
from neuron.models.errors import LoadCode, LoadError
from protocol.errors import ErrorCode
from protocol.generate import FinishReason
from tests.support.tiny_models import END, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def load(folder: Path, **start: Any) -> Engine:
    engine, _ = load_engine(Start(str(folder), threads=1, **start), lambda _: None)
    return engine


def add(number: int, prompt: int = 20, answer: int = 12, **sample: Any) -> Add:
    tokens = [(number * 31 + i * 7) % 250 for i in range(prompt)]
    return Add(number, tokens, SamplingParams(answer, **sample))


def run(engine: Engine) -> list[Step]:
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    return steps


def outputs(steps: list[Step], number: int) -> list[Output]:
    return [output for step in steps for output in step.outputs if output.id == number]


def tokens(steps: list[Step], number: int) -> list[int]:
    return [token for output in outputs(steps, number) for token in output.tokens]


def test_a_step_reports_everyone_who_took_part(checkpoint: Path) -> None:
    engine = load(checkpoint, max_step_tokens=32)
    engine.add(add(1, 50))
    engine.add(add(2, 10))
    first = engine.step()
    assert (first.number, first.tokens) == (1, 32)
    assert [(p.id, p.computed, p.total) for p in first.progress] == [(1, 22, 50)]
    assert [output.id for output in first.outputs] == [2]
    assert (first.running, first.queued) == (2, 0)
    steps = run(engine)
    assert [step.number for step in steps] == list(range(2, len(steps) + 2))
    assert (steps[-1].running, steps[-1].kv_tokens_free) == (0, engine._pool.total * 16)


def test_an_aborted_sequence_is_in_no_later_step(checkpoint: Path) -> None:
    engine = load(checkpoint, max_step_tokens=16)
    for number in (1, 2, 3):
        engine.add(add(number, 200 if number == 1 else 5, 50))
    for _ in range(4):
        engine.step()
    engine.abort(1)
    engine.abort(3)
    engine.abort(99)
    for step in run(engine):
        assert {o.id for o in step.outputs} | {p.id for p in step.progress} == {2}
    engine.add(add(1))
    assert len(tokens(run(engine), 1)) == 12


def test_an_end_token_and_min_tokens(checkpoint: Path) -> None:
    engine = load(checkpoint)
    engine.add(add(1, answer=30, temperature=1.0))
    free = tokens(run(engine), 1)
    end = free[9]
    where = free.index(end)
    engine.add(add(1, answer=30, temperature=1.0, end_tokens=(end, END)))
    stopped = run(engine)
    assert tokens(stopped, 1) == free[: where + 1]
    assert outputs(stopped, 1)[-1].finish is FinishReason.STOP
    ends: dict[str, Any] = {"end_tokens": (end, END), "min_tokens": 30}
    engine.add(add(1, answer=30, temperature=1.0, **ends))
    forced = tokens(run(engine), 1)
    assert len(forced) == 30
    assert end not in forced


def test_a_stop_text_ends_the_answer_before_it(checkpoint: Path) -> None:
    engine = load(checkpoint)
    engine.add(add(1, answer=40, temperature=1.0))
    text = "".join(output.text for output in outputs(run(engine), 1))
    stop = text[5:8]
    engine.add(add(1, answer=40, temperature=1.0, stop=(stop,)))
    found = outputs(run(engine), 1)
    assert "".join(output.text for output in found) == text[: text.index(stop)]
    assert (found[-1].finish, found[-1].stop_text) == (FinishReason.STOP, stop)


@pytest.mark.parametrize("kept", [1, 5, 11, 12])
def test_text_and_tokens_of_a_resumed_answer_join_seamlessly(checkpoint: Path, kept: int) -> None:
    engine = load(checkpoint)
    request = add(1, temperature=1.0, seed=4, stop=("zz",))
    engine.add(request)
    whole = outputs(run(engine), 1)
    answer = [token for output in whole for token in output.tokens]
    engine.add(Add(2, request.prompt, request.sample, answer[:kept]))
    rest = outputs(run(engine), 2)
    assert [token for output in rest for token in output.tokens] == answer[kept:]
    assert rest[0].index == kept
    joined = "".join(o.text for o in whole[:kept]) + "".join(o.text for o in rest)
    if kept < len(answer):
        assert joined == "".join(output.text for output in whole)
    assert rest[-1].finish is FinishReason.LENGTH


def test_scattered_blocks_change_nothing(checkpoint: Path) -> None:
    engine = load(checkpoint, kv_cache_bytes=24 * 16 * 1536, max_running=8)
    solo = {}
    for number in range(1, 5):
        engine.add(add(number, 40, 60, temperature=1.0))
        solo[number] = tokens(run(engine), number)
    for number in (11, 1, 12, 2, 3, 4):
        engine.add(add(number, 40 if number < 10 else 20, 60 if number < 10 else 20, temperature=1))
    steps, scattered = [], 0
    while engine.has_work:
        steps.append(engine.step())
        for running in engine._scheduler._running.values():
            scattered += running.blocks != sorted(running.blocks)
    assert scattered, "the cache was so small that tiles were torn apart"
    assert steps[-1].preemptions
    assert {number: tokens(steps, number) for number in solo} == solo


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_aborted_requests_leave_nothing(checkpoint: Path, count: int) -> None:
    """Aborted in the queue, in the prompt, in the answer; with everything that keeps state."""
    engine = load(checkpoint, max_running=8, max_queued=8, max_step_tokens=64)
    chance = random.Random(3)
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0, "stop": ("zz",)},
        {"frequency_penalty": 0.5, "logprobs": 3},
        {"prompt_logprobs": 2, "logit_bias": ((5, 1.0),)},
    ]
    began: list[int] = []
    for number in range(count):
        sample = kinds[number % len(kinds)]
        assert engine.add(add(number, chance.randrange(1, 200), 50, **sample)) is None
        began.append(number)
        for _ in range(chance.randrange(3)):
            engine.step()
        while len(began) > 12 or (began and chance.random() < 0.3):
            engine.abort(began.pop(chance.randrange(len(began))))
    for number in began:
        engine.abort(number)
    assert not engine.has_work
    assert engine._pool.free_blocks == engine._pool.total
    assert not engine._answers
    assert not engine._scheduler._coming
    assert not engine._runner._prompt_logprobs._found
    assert not engine._runner._processors._tables
    engine.add(add(5000))
    assert len(tokens(run(engine), 5000)) == 12


def test_a_deadline_ends_a_sequence_wherever_it_is(checkpoint: Path) -> None:
    engine = load(checkpoint, max_running=1)
    for number, seconds in ((1, None), (2, 0.0), (3, 3600.0)):
        request = add(number)
        engine.add(Add(number, request.prompt, request.sample, seconds_left=seconds))
    (late,) = engine.expire()
    assert (late.id, late.code) == (2, ErrorCode.TIMEOUT)
    assert "deadline" in late.message
    steps = run(engine)
    assert len(tokens(steps, 1)) == len(tokens(steps, 3)) == 12
    assert not tokens(steps, 2)


def test_a_known_beginning_is_reported_and_told_to_the_fleet(checkpoint: Path) -> None:
    engine = load(checkpoint)
    engine.add(add(1, 100))
    first = run(engine)
    assert outputs(first, 1)[0].cached == 0
    told = [step.prefixes for step in first if step.prefixes is not None]
    assert [len(prefixes) for prefixes in told] == [1]
    same = add(1, 100)
    engine.add(Add(2, same.prompt, same.sample))
    again = run(engine)
    assert [output.cached for output in outputs(again, 2)] == [96] + [0] * 11
    assert tokens(again, 2) == tokens(first, 1)
    assert all(step.prefixes is None for step in again), "nothing new to tell"
    assert again[-1].kv_tokens_cached >= 96
    assert again[-1].kv_tokens_free == engine._pool.total * 16


def test_refusals(checkpoint: Path) -> None:
    engine = load(checkpoint, max_running=1, max_queued=0)
    assert engine.add(add(1)) is None
    again, full = engine.add(add(1)), engine.add(add(2))
    assert again is not None
    assert again.code == ErrorCode.INVALID_REQUEST
    assert full is not None
    assert full.code == ErrorCode.OVERLOADED
    run(engine)
    assert engine.add(add(2)) is None


def test_poisoned_logits_are_a_fault(checkpoint: Path) -> None:
    engine = load(checkpoint)
    engine._runner._forward.model.norm.weight.fill_(float("nan"))
    engine.add(add(1))
    with pytest.raises(PoisonedLogits, match="NaN"):
        engine.step()


@pytest.mark.parametrize(
    ("start", "code", "words"),
    [
        ({"kv_cache_bytes": 1000}, LoadCode.OUT_OF_MEMORY, "16 tokens"),
        ({"device": "cuda:7"}, LoadCode.UNSUPPORTED, "cuda:7"),
        ({"device": "tpu"}, LoadCode.UNSUPPORTED, "tpu"),
        ({"dtype": "int3"}, LoadCode.UNSUPPORTED, "bfloat16"),
        ({"max_context": 1}, LoadCode.UNSUPPORTED, "max_context"),
        ({"max_running": 0}, LoadCode.UNSUPPORTED, "max_running"),
    ],
)
def test_bad_settings_are_load_errors(
    checkpoint: Path, start: dict[str, Any], code: LoadCode, words: str
) -> None:
    with pytest.raises(LoadError) as caught:
        load(checkpoint, **start)
    assert caught.value.code is code
    assert words in caught.value.message


def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuron.hardware.host.Host.memory_free_bytes", lambda _: 64 << 20)
    monkeypatch.setattr("neuron.engine.loader.load_units", lambda *_: pytest.fail("was read"))
    with pytest.raises(LoadError, match="weights") as caught:
        load(checkpoint)
    assert caught.value.code is LoadCode.OUT_OF_MEMORY


def test_what_was_found_about_the_kernels_is_not_tried_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, first = load_engine(Start(str(checkpoint), threads=1), lambda _: None)
    engine.add(add(1))
    expected = tokens(run(engine), 1)
    tried: list[str] = []

    def choose(*some: Any, **more: Any) -> KernelPath:
        tried.append("again")
        return choose_path(*some, **more)

    monkeypatch.setattr(loader, "choose_path", choose)
    monkeypatch.setattr(loader, "quickest_rows", lambda *_: pytest.fail("it was measured again"))
    known = Start(str(checkpoint), threads=1, findings=first.findings)
    engine, second = load_engine(known, lambda _: None)
    assert not tried
    assert (second.findings, second.numerics) == (first.findings, first.numerics)
    engine.add(add(1))
    assert tokens(run(engine), 1) == expected
    monkeypatch.setattr(loader, "quickest_rows", lambda *_: 2)
    for changed in ({"threads": 2}, {"dtype": "bfloat16"}, {"exact": False}):
        load_engine(msgspec.structs.replace(known, **changed), lambda _: None)
    assert len(tried) == 3, "whatever has changed is tried"
