"""Bodies of very many values are refused without holding the event loop; all others pass."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.api.dialects.registry import DIALECTS
from cortex.api.screening.complexity import (
    MAX_OTHER_VALUES,
    MAX_TOKENS,
    MAX_TOOL_VALUES,
    MAX_VALUES,
    QUICK_SIGNS,
    signs,
    too_complex,
)
from cortex.api.screening.screener import Screener
from protocol.errors import FleetError
from tests.support.properties import examples

PART = {"type": "text", "text": "hello, there {[,"}
MESSAGE = {"role": "user", "content": "hi, [you] {all}"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [MESSAGE], "max_tokens": 5, **fields}


MANY: dict[str, tuple[dict[str, Any], str]] = {
    "messages": (chat(messages=[MESSAGE] * 180_000), "messages"),
    "messages with parts": (
        chat(messages=[{"role": "user", "content": [PART] * 100}] * 600),
        "messages",
    ),
    "one message of parts": (
        chat(messages=[{"role": "user", "content": [PART] * 60_000}]),
        "messages",
    ),
    "calls": (
        chat(
            messages=[
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]
                    * 60_000,
                }
            ]
        ),
        "messages",
    ),
    "items": ({"model": "m", "input": [MESSAGE] * 60_000, "truncation": "auto"}, "input"),
    "system blocks": (chat(system=[PART] * 60_000), "system"),
    "tools": (chat(tools=[TOOL] * 60_000), "tools"),
    "prompts": ({"model": "m", "prompt": ["a"] * 1_200_000}, "prompt"),
    "tokens": ({"model": "m", "prompt": [1] * 1_200_000}, "prompt"),
    "lists of tokens": ({"model": "m", "prompt": [[1] * 100] * 12_000}, "prompt"),
    "biases": (chat(logit_bias={str(n): 1 for n in range(60_000)}), "logit_bias"),
    "stops": (chat(stop=["a"] * 60_000), "stop"),
    "metadata": (chat(metadata={str(n): "x" for n in range(60_000)}), "metadata"),
    "an unknown field": (chat(whatever=[[]] * 60_000), "whatever"),
    "options": (
        chat(chat_template_kwargs={str(n): 1 for n in range(60_000)}),
        "chat_template_kwargs",
    ),
}


@pytest.fixture
async def screener() -> AsyncIterator[Screener]:
    made = Screener()
    yield made
    await made.close()


class Lag:
    """How late the event loop was at most during a block."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> "Lag":
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.002)
            self.worst = max(self.worst, time.monotonic() - began - 0.002)


@pytest.mark.parametrize("name", MANY)
async def test_many_values_are_refused_by_their_field(screener: Screener, name: str) -> None:
    sent, field = MANY[name]
    body = json.dumps(sent).encode()
    async with Lag() as lag:
        with pytest.raises(FleetError, match=r"values; at most [\d,]+ are read") as refused:
            await screener.check(body)
    assert refused.value.error.param == field
    assert str(refused.value).startswith(f"{field}: it has ")
    assert lag.worst < 0.15, "and the loop goes on"


def test_long_texts_pass_at_once() -> None:
    body = json.dumps(chat(messages=[{"role": "user", "content": "x" * 8_000_000}])).encode()
    assert not Screener.has_to_look(signs(body))


async def test_texts_full_of_signs_pass(screener: Screener) -> None:
    text = 'if (a[1], b["x"], {}) { return [1, 2, 3]; } // \\" ' * 20_000
    body = json.dumps(chat(messages=[{"role": "user", "content": text}] * 5)).encode()
    assert signs(body) > 10 * QUICK_SIGNS
    await screener.check(body)
    assert screener._process is not None


async def test_what_is_allowed_is_decoded_quickly() -> None:
    """Each field just below its bound, in every dialect that has it."""
    usual = {"openai_chat": chat(), "openai_completions": {"model": "m", "prompt": "a"}}
    usual["openai_responses"] = {"model": "m", "input": "a"}
    usual["anthropic_messages"] = chat()
    full = {
        "messages": [MESSAGE] * (MAX_VALUES // 3),
        "input": [MESSAGE] * (MAX_VALUES // 3),
        "tools": [TOOL] * min(9_999, MAX_TOOL_VALUES // 10),
        "prompt": [1] * (MAX_TOKENS - 1),
        "stop": ["a"] * 15,
        "logit_bias": {str(n): 1 for n in range(1000)},
        "whatever": [[]] * (MAX_OTHER_VALUES - 1),
    }
    for (name, base), (field, value) in itertools.product(usual.items(), full.items()):
        if field in base or field in ("tools", "whatever"):
            body = json.dumps({**base, field: value}).encode()
            assert too_complex(body) == ("", ""), field
            began = time.process_time()
            with contextlib.suppress(FleetError):
                DIALECTS[name].decode(body)
            assert time.process_time() - began < 0.3, (name, field)


async def test_a_field_that_comes_twice_is_refused(screener: Screener) -> None:
    many = json.dumps([MESSAGE] * 60_000)
    body = f'{{"model":"m","messages":{many},"messages":[]}}'.encode()
    with pytest.raises(FleetError, match="a field twice"):
        await screener.check(body)
    inner = f'{{"model":"m","messages":[{{"role":"user","content":{many},"content":""}}]}}'
    with pytest.raises(FleetError, match="a field twice"):
        await screener.check(inner.encode())


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{" * 60_000, b",,," * 50_000, b"[1,2" * 50_000])
async def test_what_is_no_json_is_left_to_the_decoder(screener: Screener, body: bytes) -> None:
    await screener.check(body)


@pytest.mark.parametrize("rest", [b"", b"\\", b'"', b'"]', b'\\"'])
@pytest.mark.parametrize("piece", [b'\\"', b"\\", b'",', b'"', b'"\\', b'\\",'])
def test_unclosed_texts_take_no_longer_than_others(piece: bytes, rest: bytes) -> None:
    body = b'{"a":"' + piece * 2_000_000 + rest
    began = time.process_time()
    too_complex(body)
    assert time.process_time() - began < 5.0


async def test_millions_of_values_are_refused_before_they_are_decoded(screener: Screener) -> None:
    body = b'{"messages":[' + b"[]," * 5_000_000 + b"[]]}"
    with pytest.raises(FleetError, match=r"The body has more than [\d,]+ values"):
        await screener.check(body)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
async def test_its_process_may_die_or_hang(
    screener: Screener, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.api.screening.screener.ANSWER_SECONDS", 3.0)
    body = json.dumps(MANY["items"][0]).encode()
    with pytest.raises(FleetError):
        await screener.check(body)
    assert screener._process is not None
    os.kill(screener._process.pid, signum)
    with pytest.raises(FleetError, match="input: it has"):
        await screener.check(body)


async def test_a_client_that_leaves_does_not_confuse_the_next(screener: Screener) -> None:
    bad, good = (json.dumps(MANY["items"][0]).encode(), json.dumps(chat(tools=[TOOL] * 9000)))
    for pause in (0.0, 0.05, 0.2, 0.5):
        task = asyncio.create_task(screener.check(bad))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await screener.check(good.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=60,
)


@given(JSON)
@examples(200)
def test_values_are_counted_as_they_are(value: Any) -> None:
    """Against a count by recursion, whatever is in the texts."""

    def count(one: Any) -> int:
        if isinstance(one, dict):
            return len(one) + sum(map(count, one.values()))
        if isinstance(one, list):
            return len(one) + sum(map(count, one))
        return 0

    body = json.dumps({"x": [value] * 400}).encode()
    field, why = too_complex(body)
    expected = 400 + 400 * count(value)
    assert (field == "x") is (expected > MAX_OTHER_VALUES), why
    assert not why or f"it has {expected:,} values" in why
