"""OpenAI's Responses over HTTP: what is special to them."""

from typing import Any

from neuron.ipc.messages import Add
from tests.support import grammar
from tests.support.fleet import MODEL, TestFleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.watched import WatchedEngines, real_fleet

QUESTION = "What is 17 + 25?"


async def response(fleet: TestFleet, **more: Any) -> dict[str, Any]:
    asked = {"model": MODEL, "input": QUESTION, **more}
    answer = await fleet.client.post("/v1/responses", json=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    grammar.response_whole(found)
    return found


def text(found: dict[str, Any]) -> str:
    return "".join(
        part["text"]
        for item in found["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


async def test_limits(nats: NatsServer) -> None:
    off = {"reasoning": {"effort": "none"}, "temperature": 0}
    async with real_fleet(nats, WatchedEngines()) as fleet:
        usual = await response(fleet, **off)
        assert usual["status"] == "completed"
        cut = await response(fleet, **off, max_output_tokens=2)
        assert cut["status"] == "incomplete"
        assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
        assert text(usual).startswith(text(cut))
        assert (await response(fleet, **off, max_output_tokens=10**9))["output"]


async def test_what_is_too_long_can_lose_its_oldest_turns(nats: NatsServer) -> None:
    prompts: list[int] = []

    def answer(add: Add) -> tuple[str, ...]:
        prompts.append(len(add.prompt))
        return ("Hi",)

    talk = [
        {"role": role, "content": f"{number} " + "word " * 150}
        for number in range(20)
        for role in ("user", "assistant")
    ]
    talk.append({"role": "user", "content": "And now?"})
    async with scripted_fleet(nats, Script(answer)) as fleet:
        found = await response(fleet, input=talk, truncation="auto")
        assert found["truncation"] == "auto"
        assert 1024 < prompts[0] < 2048
        asked = {"model": MODEL, "input": talk, "truncation": "disabled"}
        refused = await fleet.client.post("/v1/responses", json=asked)
        assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_penalties_reach_the_engine(nats: NatsServer) -> None:
    seen: list[Add] = []

    def answer(add: Add) -> tuple[str, ...]:
        seen.append(add)
        return ("Hi",)

    async with scripted_fleet(nats, Script(answer)) as fleet:
        await response(fleet, presence_penalty=0.5, frequency_penalty=-0.5, top_p=0.25)
    sample = seen[0].sample
    assert (sample.presence_penalty, sample.frequency_penalty) == (0.5, -0.5)
    assert sample.top_p == 0.25


async def test_logprobs(nats: NatsServer) -> None:
    async with real_fleet(nats, WatchedEngines()) as fleet:
        found = await response(fleet, reasoning={"effort": "none"}, top_logprobs=2)
    (part,) = found["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])


async def test_what_was_asked_is_repeated(nats: NatsServer) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "truncation": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "user": "u",
        "max_output_tokens": 9,
        "max_tool_calls": 3,
        "top_p": 0.5,
        "temperature": 0.5,
        "parallel_tool_calls": False,
    }
    async with scripted_fleet(nats, Script()) as fleet:
        found = await response(fleet, **asked)
        bare = await response(fleet)
    assert {name: found[name] for name in asked} == asked
    for name in ("top_p", "temperature", "presence_penalty", "frequency_penalty", "top_logprobs"):
        assert isinstance(bare[name], int | float), "strict clients take no null for a number"
    assert bare["tool_choice"] == "auto"
    assert bare["store"] is False


async def test_a_stream_that_is_taken_up_goes_on_with_the_next_event(nats: NatsServer) -> None:
    call = ("<tool_call>\n", '{"name": "f", "arguments": {"x": 1}}', "\n</tool_call>")
    script = Script(lambda add: ("<think>", "a", "</think>", "b", "c", *call, *"defg"))
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    async with scripted_fleet(nats, script) as fleet:
        asked = {"model": MODEL, "input": "Hi", "tools": tools, "stream": True}
        answer = await fleet.client.post("/v1/responses", json=asked)
        job = answer.headers["x-request-id"]
        whole = [event for event in grammar.events(answer.text) if event.id]
        grammar.response_stream(answer.text)
        for number, event in enumerate(whole[:-1]):
            headers = {"Last-Event-ID": event.id}
            again = await fleet.client.get(f"/v1/streams/{job}", headers=headers)
            rest = [later for later in grammar.events(again.text) if later.id]
            told = _texts(whole[: number + 1] + rest)
            assert told == _texts(whole), event.id


def _texts(events: list[grammar.Event]) -> list[tuple[str, str]]:
    """Names and ids, and what is said, deltas of one kind joined."""
    joined: list[tuple[str, str]] = []
    for event in events:
        said = event.data.partition('"delta":"')[2].partition('"')[0]
        if event.name.endswith(".delta") and joined and joined[-1][0] == event.name:
            joined[-1] = (event.name, joined[-1][1] + said)
        else:
            joined.append((event.name, said))
    return joined
