"""Templates that try to take all memory or time fail within their budget, and the loop goes on."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

import pytest

from neuron.ipc.messages import Ready
from neuron.service.texts.shelf import Shelf
from neuron.text.prompt import RENDER_SECONDS
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest, Message, Role
from protocol.job import Job
from tests.support.bombs import LOOPS, bombs, model_of
from tests.support.waiting import background

log = logging.getLogger(__name__)

AT_ONCE = 400
"""Bombs in one template."""
LOOP_SECONDS = 0.05
ALLOWED = (ErrorCode.INVALID_REQUEST, ErrorCode.CONTEXT_LENGTH_EXCEEDED)


def ready(limit: int = 100_000) -> Ready:
    return Ready(
        architecture="A",
        dtype="float32",
        context_limit=limit,
        max_running=1,
        weight_bytes=1,
        kv_cache_bytes=1,
        kv_cache_tokens=1,
        kv_cache_why="",
        vocab_size=1000,
        load_seconds=0.0,
        exact=True,
        numerics="",
    )


def job(text: str) -> Job:
    return Job("j", "g", GenerateRequest("m", (Message(Role.USER, text),)), 1, 0.0)


async def ticking(worst: list[float]) -> None:
    """Measures how long the loop stood still because this process computed, and not another one on
    a busy machine."""
    while True:
        before, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(0.002)
        late = time.perf_counter() - before - 0.002
        worst[0] = max(worst[0], min(late, time.process_time() - used))


async def set_off(folder: Path, templates: list[str]) -> None:
    """Loads a model with all of them, and has each rendered."""
    shelf, worst = Shelf(), [0.0]
    began = time.perf_counter()
    async with background(ticking(worst)), shelf.use(model_of(folder, templates), "auto") as texts:
        assert time.perf_counter() - began < 5, "compiled, and nothing computed"
        for number, template in enumerate(templates):
            began = time.perf_counter()
            with contextlib.suppress(FleetError):  # which says it in a sentence
                await texts.prepare(job(str(number)), ready())
            seconds = time.perf_counter() - began
            if seconds > 0.5:
                log.info("%.2f s: %s", seconds, template)
            assert seconds < 4 * RENDER_SECONDS, template
        assert (await texts.prepare(job("none of them"), ready())).tokens
    await shelf.close()
    assert worst[0] < LOOP_SECONDS, f"the loop stood still for {worst[0]:.3f} s"


async def test_some_bombs(tmp_path: Path) -> None:
    found = [*bombs()]
    await set_off(tmp_path, [*found[:: len(found) // 60], *LOOPS[::3]])


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_all_bombs(tmp_path: Path) -> None:
    found = [*bombs()]
    for number in range(0, len(found), AT_ONCE):
        await set_off(tmp_path / str(number), found[number : number + AT_ONCE])


async def test_a_template_that_is_too_slow_is_told_so(tmp_path: Path) -> None:
    """By itself where it is Python, by the end of its process where it is one call of C code."""
    loop = "{% for i in range(99999) %}{% set x = ('x y' * 300000) | upper %}{% endfor %}"
    two = "{% set a = 'x' * 16000000 %}{% set b = ('x' * 15999999) ~ 'x' %}"
    call = two + "{{ [a, b] * 1000000 == [b, a] * 1000000 }}"  # an hour in one comparison
    shelf = Shelf()
    async with shelf.use(model_of(tmp_path, [loop, call]), "auto") as texts:
        before = texts.pids
        for _ in range(2):
            with pytest.raises(FleetError, match="template took more than 2 s of processor time"):
                await texts.prepare(job("0"), ready())
        assert texts.pids == before
        with pytest.raises(
            FleetError, match=r"template of m took more than 2\.0 s of processor time"
        ):
            await texts.prepare(job("1"), ready())
        assert texts.pids != before
        assert (await texts.prepare(job("fine"), ready())).tokens
    await shelf.close()


DEEP = {
    "parentheses": "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
    "ifs": "{% if 1 %}" * 3_000,
    "signs": "{{ " + "-" * 90_000 + "1 }}",
}


@pytest.mark.parametrize("name", DEEP)
async def test_what_cannot_be_compiled_is_refused(tmp_path: Path, name: str) -> None:
    shelf = Shelf()
    with pytest.raises(FleetError, match=r"model folder .* cannot be used"):
        async with shelf.use(model_of(tmp_path, [DEEP[name]]), "auto"):
            pass
    await shelf.close()
