"""A lane answers whatever happens to its process, and blames only who is to blame."""

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from neuron.engine_process.child import Child
from neuron.engine_process.launch import CannotLaunch, start_text_python
from neuron.service.texts import model_texts as module
from neuron.service.texts.model_texts import ModelTexts
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest, Message, Role, Sampling
from protocol.job import Job
from tests.neuron.text.models import make_model
from tests.neuron.text_process.test_bombs import job, ready
from tests.support.waiting import until

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Launches:
    """Starts text processes, and does something to each."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.then: Callable[[int], None] = lambda pid: None
        self.refusals = 0

    async def __call__(self, channel: int) -> Child:
        if self.refusals:
            self.refusals -= 1
            raise CannotLaunch("not now")
        child = await start_text_python(channel)
        self.pids.append(child.pid)
        self.then(child.pid)
        return child


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launches() -> Launches:
    return Launches()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path, template=TEMPLATE)


@pytest_asyncio.fixture
async def texts(launches: Launches, folder: Path) -> AsyncIterator[ModelTexts]:
    texts = await ModelTexts.open(launches, str(folder), "auto")
    yield texts
    await texts.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in launches.pids)


async def test_a_process_that_dies_in_its_load_is_tried_again(
    launches: Launches, folder: Path
) -> None:
    def kill_two(pid: int) -> None:
        if len(launches.pids) < 3:
            kill(pid)

    launches.then, launches.refusals = kill_two, 1
    texts = await ModelTexts.open(launches, str(folder), "auto")
    assert (await texts.prepare(job("hi"), ready())).tokens
    await texts.close()
    launches.then = kill
    with pytest.raises(FleetError, match="SIGKILL") as caught:
        await ModelTexts.open(launches, str(folder), "auto")
    assert caught.value.error.code is ErrorCode.MODEL_UNAVAILABLE, "the model is not to blame"


async def test_a_process_that_dies_at_rest_is_replaced_at_once(
    launches: Launches, texts: ModelTexts
) -> None:
    def is_replaced(number: int) -> bool:
        return len(launches.pids) > number and texts.pids == (launches.pids[number],)

    for number in range(1, 4):
        kill(launches.pids[-1])
        await until(functools.partial(is_replaced, number), what="another one")
    assert (await texts.prepare(job("hi"), ready())).tokens


async def test_a_request_whose_process_is_always_killed_goes_elsewhere(
    launches: Launches, texts: ModelTexts
) -> None:
    launches.then = kill
    kill(launches.pids[-1])
    with pytest.raises(FleetError) as caught:
        await texts.prepare(job("hi"), ready())
    assert caught.value.error.code is ErrorCode.MODEL_UNAVAILABLE
    launches.then = lambda pid: None
    assert (await texts.prepare(job("hi"), ready())).tokens, "it recovers"


async def test_a_model_that_has_changed_is_not_mixed_with_what_was_loaded(
    launches: Launches, texts: ModelTexts, folder: Path
) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE + "!")
    assert (await texts.prepare(job("hi"), ready())).tokens
    kill(launches.pids[-1])
    with pytest.raises(FleetError, match="has changed since it was loaded") as caught:
        await texts.prepare(job("hi"), ready())
    assert caught.value.error.code is ErrorCode.MODEL_UNAVAILABLE
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert (await texts.prepare(job("hi"), ready())).tokens


async def test_large_requests_have_a_process_that_ends_when_nobody_needs_it(
    texts: ModelTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_IDLE_SECONDS", 0.3)
    large = job("x" * (module.LARGE_BYTES + 1))
    usual = texts.pids
    answers = await asyncio.gather(
        texts.prepare(large, ready(10**6)), texts.prepare(job("hi"), ready())
    )
    assert len(answers[0].tokens) == module.LARGE_BYTES + 1
    assert len(texts.pids) == 2
    await until(lambda: texts.pids == usual, what="the end of the other one")
    assert (await texts.prepare(large, ready(10**6))).tokens


async def test_whoever_is_cancelled_leaves_the_others_alone(texts: ModelTexts) -> None:
    waiting = [asyncio.create_task(texts.prepare(job(str(n)), ready())) for n in range(50)]
    await asyncio.sleep(0.002)
    for task in waiting[::2]:
        task.cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 2:
            assert not isinstance(answer, BaseException)
            assert len(answer.tokens) == len(str(number))


async def test_texts_of_tokens_come_with_log_probabilities(texts: ModelTexts) -> None:
    assert texts.text.vocabulary is None
    request = GenerateRequest("m", (Message(Role.USER, "hé"),), sampling=Sampling(logprobs=2))
    prompt = await texts.prepare(Job("j", "g", request, 1, 0.0), ready())
    joined = b"".join(texts.text.token_bytes(token) for token in prompt.tokens)
    assert joined.decode() == "hé"
    assert texts.text.token_bytes(10**9) == texts.text.token_bytes(-1) == b""


async def test_what_is_closed_answers_nobody(texts: ModelTexts) -> None:
    asking = asyncio.create_task(texts.prepare(job("hi"), ready()))
    await texts.close()
    with pytest.raises((FleetError, asyncio.CancelledError)):
        await asking
    with pytest.raises(FleetError):
        await texts.prepare(job("hi"), ready())
