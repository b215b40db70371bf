"""Whatever a model writes and however it comes: all dialects say the same, streaming or not, and
what was meant.

Random outputs go through the real neuron's parser, the real bus and the real gateway; what comes
out is read by a state machine per dialect. ``DIALECT_CASES=1300`` makes more than 10,000 answers.
"""

import asyncio
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from neuron import demo_model
from neuron.ipc.messages import Add
from neuron.text.tokenizer import Tokenizer
from tests.support import grammar
from tests.support.fleet import MODEL, TestFleet, scripted_fleet
from tests.support.grammar import Said
from tests.support.nats import NatsServer
from tests.support.scripted import Script

CASES = int(os.environ.get("DIALECT_CASES", "20"))
"""Outputs; each makes eight answers."""
PARALLEL = 8
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}, "s": {"type": "string"}}}
WORDS = ("Hi", " there", "\n", "ä", "🎉", " <b>", "<", " </p>", '"q"', "{", "}", "日本", " x<y ")


class Output(NamedTuple):
    """What a model could write, and what it means."""

    text: str
    reasoning: str
    content: str
    calls: list[tuple[str, dict[str, Any]]]
    is_whole: bool
    """No call is broken, so that it is certain what is meant."""


def random_text(chance: random.Random) -> str:
    return "".join(chance.choice(WORDS) for _ in range(chance.randint(0, 12)))


def random_call(chance: random.Random) -> tuple[str, str, dict[str, Any]]:
    arguments: dict[str, Any] = {}
    if chance.random() < 0.7:
        arguments["s"] = random_text(chance) * chance.choice([1, 1, 1, 60])
    if chance.random() < 0.5:
        arguments["x"] = chance.randint(-5, 10**6)
    name = chance.choice(["f", "g"])
    if chance.random() < 0.25:  # in the other style
        inner = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()
        )
        return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>", name, arguments
    is_ascii, indent = chance.random() < 0.5, chance.choice([None, 2])
    written = json.dumps(arguments, ensure_ascii=is_ascii, indent=indent)
    text = f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>'
    return text, name, arguments


def random_output(chance: random.Random) -> Output:
    text = reasoning = ""
    calls: list[tuple[str, dict[str, Any]]] = []
    is_whole = True
    if chance.random() < 0.5:
        reasoning = random_text(chance)
        text = f"<think>\n{reasoning}\n</think>\n\n"
    content = random_text(chance)
    text += content
    for _ in range(chance.choice([0, 0, 1, 1, 2, 3])):
        call, name, arguments = random_call(chance)
        if chance.random() < 0.15:
            call, is_whole = call[: chance.randrange(len(call))], False
        calls.append((name, arguments))
        between = chance.choice(["", "\n", " and\n"])
        content += between
        text += call + between
    return Output(text, reasoning, content, calls, is_whole)


def chunks(text: str, chance: random.Random) -> tuple[str, ...]:
    """*text* as tokens."""
    pieces = []
    while text:
        size = chance.choice([1, 1, 2, 3, 5, 8, 40])
        pieces.append(text[:size])
        text = text[size:]
    return tuple(pieces)


class Outputs:
    """Which output a request gets, its prompt says; each time it comes in other chunks."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self._count = 0
        self._tokenizer = Tokenizer.load(Path(next(iter(demo_model.__path__))))

    def answer(self, add: Add) -> tuple[str, ...]:
        self._count += 1
        found = re.search(r"case (\d+)\.", self._tokenizer.decode(add.prompt))
        assert found
        return chunks(self.texts[int(found[1])], random.Random(self._count))


class Asked(NamedTuple):
    """One way of asking."""

    path: str
    body: dict[str, Any]
    whole: Callable[[dict[str, Any]], Said]
    stream: Callable[[str], Said]


def ways(key: int) -> dict[str, Asked]:
    """The same request in each dialect."""
    messages = [{"role": "user", "content": f"This is case {key}."}]
    functions = [{"name": name, "parameters": SCHEMA} for name in "fg"]
    usage = {"stream_options": {"include_usage": True}}
    chat = {
        "messages": messages,
        "tools": [{"type": "function", "function": one} for one in functions],
        **usage,
    }
    anthropic = {
        "messages": messages,
        "max_tokens": 2000,
        "thinking": {"type": "adaptive"},
        "tools": [{"name": name, "input_schema": SCHEMA} for name in "fg"],
    }
    response = {
        "input": messages,
        "tools": [{"type": "function", **one} for one in functions],
    }
    text = {"prompt": f"This is case {key}.", "max_tokens": 2000, **usage}
    g = grammar
    return {
        "chat": Asked("/v1/chat/completions", chat, g.chat_whole, g.chat_stream),
        "messages": Asked("/v1/messages", anthropic, g.message_whole, g.message_stream),
        "responses": Asked("/v1/responses", response, g.response_whole, g.response_stream),
        "completions": Asked("/v1/completions", text, g.completion_whole, g.completion_stream),
    }


async def ask(fleet: TestFleet, way: Asked, *, stream: bool) -> Said:
    body = {"model": MODEL, "stream": stream, **way.body}
    if not stream:
        body.pop("stream_options", None)
    answer = await fleet.client.post(way.path, json=body)
    assert answer.status_code == 200, answer.text
    assert "\ufffd" not in answer.text
    return way.stream(answer.text) if stream else way.whole(answer.json())


def plain(said: Said) -> Said:
    """Comparable: arguments by value, and no counts, for each answer comes in other chunks."""
    calls = tuple((name, json.dumps(_value(text), sort_keys=True)) for name, text in said.calls)
    return said._replace(calls=calls, tokens=(0, 0))


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def squashed(text: str) -> str:
    """White space around tags is taken out by rules of its own, which have their own tests."""
    return "".join(text.split())


def check(output: Output, said: Said) -> None:
    """It is what the model meant."""
    assert squashed(said.reasoning) == squashed(output.reasoning), output.text
    assert squashed(said.text) == squashed(output.content), output.text
    found = [(name, json.loads(arguments)) for name, arguments in said.calls]
    assert found == output.calls, output.text
    assert said.finish == ("calls" if output.calls else "stop")


async def test_all_dialects_say_the_same(nats: NatsServer) -> None:
    outputs = Outputs()
    script = Script(outputs.answer, slots=32, step_seconds=0.0005)
    async with scripted_fleet(nats, script) as fleet:

        async def case(key: int) -> None:
            output = random_output(random.Random(key))
            outputs.texts[key] = output.text
            found = {
                (name, stream): await ask(fleet, way, stream=stream)
                for name, way in ways(key).items()
                for stream in (False, True)
            }
            for stream in (False, True):
                assert found.pop(("completions", stream)).text == output.text
            first = found["chat", False]
            if output.is_whole:
                check(output, first)
            for which, said in found.items():
                assert plain(said) == plain(first), (which, output.text)
                assert said.tokens[0] == found[which[0], False].tokens[0]

        for start in range(0, CASES, PARALLEL):
            keys = range(start + 1, min(start + PARALLEL, CASES) + 1)
            await asyncio.gather(*(case(key) for key in keys))
