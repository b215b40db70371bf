"""The SDKs of OpenAI and Anthropic against a whole fleet: what their users see."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from tests.support.fleet import MODEL, TestFleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

CALL = ("<tool_call>\n", '{"name": "f", "arg', 'uments": {"x": 1}}', "\n</tool_call>")
ANSWER = ("<think>", "hm", "</think>", "Let me", " look.", *CALL)
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}}
FUNCTION: Any = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
USER: Any = [{"role": "user", "content": "Hi"}]


@contextlib.asynccontextmanager
async def openai_client(fleet: TestFleet) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@contextlib.asynccontextmanager
async def anthropic_client(fleet: TestFleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=fleet.url, api_key="none", max_retries=0
    ) as client:
        yield client


def says(*texts: str) -> Script:
    return Script(lambda add: texts)


# -- OpenAI ----------------------------------------------------------------------------------------


async def test_chat_with_the_openai_sdk(nats: NatsServer) -> None:
    async with scripted_fleet(nats, says(*ANSWER)) as fleet, openai_client(fleet) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=USER, tools=[FUNCTION])
        async with client.chat.completions.stream(
            model=MODEL, messages=USER, tools=[FUNCTION], stream_options={"include_usage": True}
        ) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_completion()
        for completion in (whole, streamed):
            (choice,) = completion.choices
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content == "Let me look."
            assert choice.message.model_extra
            assert choice.message.model_extra["reasoning_content"] == "hm"
            assert choice.message.tool_calls
            (call,) = choice.message.tool_calls
            assert call.type == "function"
            assert (call.function.name, call.function.arguments) == ("f", '{"x": 1}')
            assert completion.usage
            assert completion.usage.completion_tokens == len(ANSWER)
        assert "tool_calls.function.arguments.done" in kinds
        second: Any = [
            *USER,
            whole.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "42"},
        ]
        again = await client.chat.completions.create(model=MODEL, messages=second, tools=[FUNCTION])
        assert again.choices


async def test_several_choices_with_the_openai_sdk(nats: NatsServer) -> None:
    script = Script(lambda add: (f"choice {add.sample.choice}", "!"))
    async with scripted_fleet(nats, script) as fleet, openai_client(fleet) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=USER, n=3)
        async with client.chat.completions.stream(model=MODEL, messages=USER, n=3) as stream:
            streamed = await stream.get_final_completion()
        for completion in (whole, streamed):
            texts = [choice.message.content for choice in completion.choices]
            assert texts == ["choice 0!", "choice 1!", "choice 2!"]
            assert [choice.index for choice in completion.choices] == [0, 1, 2]
        assert whole.usage
        assert whole.usage.completion_tokens == 6


async def test_responses_with_the_openai_sdk(nats: NatsServer) -> None:
    tools: Any = [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}]
    async with scripted_fleet(nats, says(*ANSWER)) as fleet, openai_client(fleet) as client:
        asked: Any = {
            "model": MODEL,
            "input": "Hi",
            "tools": tools,
            "store": False,
            "include": ["reasoning.encrypted_content"],
        }
        whole = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_response()
        for response in (whole, streamed):
            assert response.status == "completed"
            assert response.output_text == "Let me look."
            output: list[Any] = list(response.output)
            reasoning, _, call = output
            assert (reasoning.type, call.type) == ("reasoning", "function_call")
            assert (call.name, call.arguments) == ("f", '{"x": 1}')
        second: Any = [
            {"role": "user", "content": "Hi"},
            *(item.model_dump(exclude_none=True) for item in whole.output),
            {"type": "function_call_output", "call_id": call.call_id, "output": "42"},
        ]
        again = await client.responses.create(**(asked | {"input": second}))
        assert again.output_text


async def test_completions_and_models_with_the_openai_sdk(nats: NatsServer) -> None:
    script = says(" upon", " a time")
    async with scripted_fleet(nats, script) as fleet, openai_client(fleet) as client:
        whole = await client.completions.create(model=MODEL, prompt="Once", echo=True)
        assert whole.choices[0].text == "Once upon a time"
        pieces = await client.completions.create(model=MODEL, prompt=["a", "b"], stream=True)
        texts = ["", ""]
        async for piece in pieces:
            texts[piece.choices[0].index] += piece.choices[0].text
        assert texts == [" upon a time"] * 2
        models = [model.id async for model in client.models.list()]
        assert models == [MODEL]
        assert (await client.models.retrieve(MODEL)).owned_by == "cortex"


async def test_errors_with_the_openai_sdk(nats: NatsServer) -> None:
    async with scripted_fleet(nats, says("Hi")) as fleet, openai_client(fleet) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="nope", messages=USER)
        assert missing.value.code == "model_not_found"
        long: Any = [{"role": "user", "content": "word " * 5000}]
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as overflow:
                await create(model=MODEL, messages=long, stream=stream)
            assert overflow.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as wrong:
            await create(model=MODEL, messages=USER, temperature=9)
        assert wrong.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as stored:
            await client.responses.create(model=MODEL, input="Hi", previous_response_id="resp_1")
        assert stored.value.param == "previous_response_id"


async def test_leaving_with_the_openai_sdk(nats: NatsServer) -> None:
    script = Script(lambda add: ["x"] * 100_000, step_seconds=0.005)
    async with scripted_fleet(nats, script) as fleet, openai_client(fleet) as client:
        (engine,) = script.engines
        for ask in (
            client.chat.completions.create(model=MODEL, messages=USER, n=2, stream=True),
            client.responses.create(model=MODEL, input="Hi", stream=True),
            client.completions.create(model=MODEL, prompt="Hi", max_tokens=2000, stream=True),
        ):
            stream: Any = await ask
            async for _ in stream:
                if engine.open:
                    break
            await stream.close()
            await until(lambda: engine.open == 0, seconds=2)


# -- Anthropic -------------------------------------------------------------------------------------


async def test_messages_with_the_anthropic_sdk(nats: NatsServer) -> None:
    tools: Any = [{"name": "f", "input_schema": SCHEMA}]
    async with scripted_fleet(nats, says(*ANSWER)) as fleet, anthropic_client(fleet) as client:
        asked: Any = {
            "model": MODEL,
            "max_tokens": 100,
            "messages": USER,
            "tools": tools,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            assert message.stop_reason == "tool_use"
            content: list[Any] = list(message.content)
            thinking, text, call = content
            assert thinking.type == "thinking"
            assert (thinking.thinking, bool(thinking.signature)) == ("hm", True)
            assert text.type == "text"
            assert text.text == "Let me look."
            assert call.type == "tool_use"
            assert (call.name, call.input) == ("f", {"x": 1})
            assert message.usage.input_tokens > 0
            assert message.usage.output_tokens == len(ANSWER)
        second: Any = [
            *USER,
            {"role": "assistant", "content": [b.model_dump() for b in whole.content]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "42"}],
            },
        ]
        again = await client.messages.create(**(asked | {"messages": second}))
        assert again.content
        count: Any = {key: asked[key] for key in ("model", "messages", "tools", "thinking")}
        counted = await client.messages.count_tokens(**count)
        assert counted.input_tokens == whole.usage.input_tokens


async def test_errors_with_the_anthropic_sdk(nats: NatsServer) -> None:
    async with scripted_fleet(nats, says("Hi")) as fleet, anthropic_client(fleet) as client:
        create = client.messages.create
        with pytest.raises(anthropic.NotFoundError) as missing:
            await create(model="nope", max_tokens=5, messages=USER)
        assert missing.value.body == missing.value.response.json()
        long: Any = [{"role": "user", "content": "word " * 5000}]
        for stream in (False, True):
            with pytest.raises(anthropic.BadRequestError, match=r"is too long: \d+ tokens > 2048"):
                await create(model=MODEL, max_tokens=5, messages=long, stream=stream)
        page = await client.models.list()
        assert [model.id for model in page.data] == [MODEL]


async def test_leaving_with_the_anthropic_sdk(nats: NatsServer) -> None:
    script = Script(lambda add: ["x"] * 100_000, step_seconds=0.005)
    async with scripted_fleet(nats, script) as fleet, anthropic_client(fleet) as client:
        (engine,) = script.engines
        stream: Any = await client.messages.create(
            model=MODEL, max_tokens=2000, messages=USER, stream=True
        )
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
        await until(lambda: engine.open == 0, seconds=2)
