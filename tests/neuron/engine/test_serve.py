"""The loop of an engine process: what it answers, in which order, and how it ends."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from neuron.engine import loader
from neuron.engine import serve as serve_module
from neuron.engine.engine import Engine
from neuron.engine.ranks.broadcast import RankBroadcast
from neuron.engine.runner import PoisonedLogits
from neuron.engine.serve import FATAL, LOAD_FAILED, OK, serve
from neuron.ipc.channel import ChannelClosed, EngineEnd
from neuron.ipc.messages import (
    Abort,
    Add,
    Fatal,
    FromEngine,
    LoadFailed,
    Prepare,
    Ready,
    Refused,
    SamplingParams,
    Shutdown,
    Start,
    Step,
    ToEngine,
)
from tests.support.tiny_models import write_checkpoint


class ScriptedEnd(EngineEnd):
    """Hands out one batch of commands each time it is asked, and keeps what is sent."""

    def __init__(self, *batches: list[ToEngine]) -> None:
        self._batches: Iterator[list[ToEngine]] = iter(batches)
        self.sent: list[FromEngine] = []

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)

    def receive(self, *, wait: bool) -> list[ToEngine]:
        try:
            return next(self._batches)
        except StopIteration:
            raise ChannelClosed from None

    @property
    def steps(self) -> list[Step]:
        return [message for message in self.sent if isinstance(message, Step)]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return Start(str(write_checkpoint(tmp_path)), threads=1, max_running=4)


def run(channel: ScriptedEnd) -> int:
    return serve(channel, RankBroadcast(), [])


def add(number: int, prompt: int = 5) -> Add:
    return Add(number, [1] * prompt, SamplingParams(max_tokens=50))


def test_commands_are_drained_before_every_step(start: Start) -> None:
    channel = ScriptedEnd([start], [add(1), add(2)], [Abort(1), add(3)], [], [Shutdown(), add(4)])
    assert run(channel) == OK
    seen = [[output.id for output in step.outputs] for step in channel.steps]
    assert seen == [[1, 2], [2, 3], [2, 3]]


def test_commands_that_came_with_start_are_not_lost(start: Start) -> None:
    channel = ScriptedEnd([start, add(1)], [Shutdown()])
    assert run(channel) == OK
    assert [type(message) for message in channel.sent[-2:]] == [Ready, Step]


def test_a_refusal_is_answered_at_once(start: Start) -> None:
    channel = ScriptedEnd([start], [add(1, prompt=9999)], [Shutdown()])
    assert run(channel) == OK
    assert isinstance(channel.sent[-1], Refused)
    assert channel.steps == []


def test_a_closed_channel_ends_the_loop(start: Start) -> None:
    with pytest.raises(ChannelClosed):
        run(ScriptedEnd([start], [add(1)]))


def test_a_failed_load_is_reported(tmp_path: Path) -> None:
    channel = ScriptedEnd([Start(str(tmp_path))])
    assert run(channel) == LOAD_FAILED
    assert isinstance(channel.sent[-1], LoadFailed)
    assert channel.sent[-1].code == "not_found"


def all_memory() -> None:
    """What the allocator of CPUs says for itself."""
    torch.empty(1 << 60, dtype=torch.uint8)


def far_too_much() -> None:
    """What Python says."""
    bytearray(1 << 60)


def as_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")


SHORTAGES = pytest.mark.parametrize(
    ("lack", "said"),
    [
        (all_memory, "allocate"),
        (far_too_much, "no memory for a Python object"),
        (as_on_a_gpu, "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)


@SHORTAGES
def test_a_load_without_memory_is_told_from_others(
    start: Start, monkeypatch: pytest.MonkeyPatch, lack: Callable[[], None], said: str
) -> None:
    monkeypatch.setattr(serve_module, "load_engine", lambda *_: lack())
    channel = ScriptedEnd([start])
    assert run(channel) == LOAD_FAILED
    (failed,) = channel.sent
    assert isinstance(failed, LoadFailed)
    assert failed.code == "out_of_memory"
    assert said in failed.message
    assert "\n" not in failed.message


@SHORTAGES
def test_a_step_without_memory_is_fatal_and_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, lack: Callable[[], None], said: str
) -> None:
    monkeypatch.setattr(Engine, "step", lambda _: lack())
    channel = ScriptedEnd([start], [add(1)])
    assert run(channel) == FATAL
    fatal = channel.sent[-1]
    assert isinstance(fatal, Fatal)
    assert fatal.message.startswith("cpu ran out of memory while computing: ")
    assert said in fatal.message


def test_other_errors_are_no_shortage(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(_: Engine) -> Step:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(RuntimeError, match="shapes"):
        run(ScriptedEnd([start], [add(1)]))


def test_a_fault_is_fatal(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(engine: Engine) -> Step:
        raise PoisonedLogits("the model computed NaN")

    monkeypatch.setattr(Engine, "step", step)
    channel = ScriptedEnd([start], [add(1)])
    assert run(channel) == FATAL
    assert channel.sent[-1] == Fatal("the model computed NaN")


def test_what_was_prepared_is_not_read_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    load_tokenizer = loader.load_tokenizer

    def note(folder: Path) -> Tokenizer:
        read.append(folder.name)
        return load_tokenizer(folder)

    monkeypatch.setattr("neuron.engine.loader.load_tokenizer", note)
    monkeypatch.setattr("neuron.engine.serve.load_tokenizer", note)
    other = Path(start.model_dir).with_name("other")
    for prepared, expected in (
        ([[Prepare(start.model_dir)], [start, Shutdown()]], 1),
        ([[Prepare(start.model_dir), start, Shutdown()]], 1),
        ([[Prepare(str(other))], [start, Shutdown()]], 2),
    ):
        read.clear()
        channel = ScriptedEnd(*prepared)
        assert run(channel) == OK
        assert isinstance(channel.sent[-1], Ready)
        assert len(read) == expected
