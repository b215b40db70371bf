"""The quality oracle: the demo model answers held-out questions through the whole HTTP path, with
the openai SDK, streaming and not. Batching, caching, migration, parallelism and quantisation must
never change what it says."""

import asyncio
from typing import Any, NamedTuple

import openai
import pytest

from tests.support.nats import NatsServer
from tests.support.watched import WatchedEngines, real_fleet
from training.data import Question, held_out_questions

SHARE_RIGHT = 0.99
AT_ONCE = 12


class Said(NamedTuple):
    """What one answer held, comparable byte for byte."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    finish: str | None

    def answers(self, question: Question) -> bool:
        """Whether it is the right answer, thoughts included."""
        calls = [{"function": {"name": n, "arguments": a}} for n, a in self.calls]
        expected_finish = "tool_calls" if question.expected_call else "stop"
        return question.matches(self.content, calls) and self.finish == expected_finish


def _request(question: Question) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": "cortex-demo",
        "messages": question.messages,
        "extra_body": {"chat_template_kwargs": {"enable_thinking": question.enable_thinking}},
    }
    return request | ({"tools": question.tools} if question.tools else {})


async def _whole(client: openai.AsyncOpenAI, question: Question) -> Said:
    answer = await client.chat.completions.create(**_request(question))
    choice = answer.choices[0]
    calls = choice.message.tool_calls or []
    return Said(
        choice.message.content or "",
        getattr(choice.message, "reasoning_content", None) or "",
        tuple((call.function.name, call.function.arguments) for call in calls),
        choice.finish_reason,
    )


async def _streamed(client: openai.AsyncOpenAI, question: Question) -> Said:
    content, reasoning, finish = "", "", None
    calls: dict[int, list[str]] = {}
    stream = await client.chat.completions.create(**_request(question), stream=True)
    async for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for piece in choice.delta.tool_calls or []:
            call = calls.setdefault(piece.index, ["", ""])
            call[0] += piece.function.name or ""
            call[1] += piece.function.arguments or ""
        finish = choice.finish_reason or finish
    return Said(content, reasoning, tuple((n, a) for n, a in calls.values()), finish)


@pytest.mark.parametrize("count", [100, pytest.param(300, marks=pytest.mark.slow)])
async def test_held_out_questions_with_the_openai_sdk(nats: NatsServer, count: int) -> None:
    questions = held_out_questions(count, seed=2024)
    assert len({str(question) for question in questions}) == count
    gate = asyncio.Semaphore(AT_ONCE)
    async with real_fleet(nats, WatchedEngines()) as fleet:
        client = openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)

        async def ask(question: Question) -> tuple[Said, Said]:
            async with gate:
                return await _whole(client, question), await _streamed(client, question)

        answers = await asyncio.gather(*map(ask, questions))
        await client.close()
    for question, (whole, streamed) in zip(questions, answers, strict=True):
        assert whole == streamed, question
    wrong = [
        (q, said) for q, (said, _) in zip(questions, answers, strict=True) if not said.answers(q)
    ]
    assert len(wrong) <= (1 - SHARE_RIGHT) * count, wrong[:5]
    thinking = [said for q, (said, _) in zip(questions, answers, strict=True) if q.enable_thinking]
    assert len(thinking) > count / 6
    assert all(said.reasoning for said in thinking)
