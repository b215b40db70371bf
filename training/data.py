"""The demo model's training examples, and held-out questions with their right answers.

Tests import :func:`held_out_questions`: three hundred of them asked over HTTP tell whether a
change anywhere in the fleet altered what the model says.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from training import phrases
from training.split import EXEMPT, Item, Kind, is_held_out
from training.turns import SKILLS, Call, Scene, Skill, Turn, possible

__all__ = ["Example", "Question", "drills", "examples", "held_out_questions", "is_held_out"]

FIRST_SKILLS = {
    Skill.TALK: 12, Skill.FACT: 11, Skill.SUM: 24, Skill.WORDS: 16,
    Skill.COUNT: 5, Skill.WEATHER: 22, Skill.UNKNOWN: 13,
}  # fmt: skip
"""How often a conversation starts with each skill."""
NEXT_SKILLS = {
    Skill.TALK: 7, Skill.FACT: 8, Skill.SUM: 14, Skill.WORDS: 9, Skill.COUNT: 2,
    Skill.WEATHER: 10, Skill.UNKNOWN: 8, Skill.ADD_MORE: 40, Skill.AGAIN: 14, Skill.AND_IN: 30,
}  # fmt: skip
"""How often each skill follows, where it is possible."""
DRILLS = {
    (Skill.SUM,): 7, (Skill.SUM, Skill.ADD_MORE): 8, (Skill.WORDS,): 12,
    (Skill.WORDS, Skill.AGAIN): 3, (Skill.SUM, Skill.AGAIN): 4, (Skill.TALK,): 2, (Skill.COUNT,): 1,
    (Skill.FACT, Skill.SUM, Skill.ADD_MORE, Skill.ADD_MORE): 2,
}  # fmt: skip
"""How often each sequence of turns is drilled."""
TURN_COUNTS = (1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation up to one assistant message, and that message."""

    skill: Skill
    messages: tuple[Mapping[str, object], ...]
    tools: tuple[Mapping[str, object], ...]
    thinking: bool
    reasoning: str
    answer: str
    """The text of the last message; empty when it is a tool call."""
    call: Call | None
    items: tuple[Item, ...]
    """Everything in it that the split speaks about."""
    last_items: tuple[Item, ...]
    """Those of the last turn."""

    @property
    def completion(self) -> str:
        """What the model has to write, without the end token."""
        text = self.answer
        if self.call is not None:
            arguments = self.call.arguments
            text = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
        return f"<think>\n{self.reasoning}\n</think>\n\n{text}" if self.thinking else text


@dataclass(frozen=True, slots=True)
class Question:
    """A request in OpenAI's form, and the only right answer to it."""

    kind: str
    messages: list[dict[str, object]]
    tools: list[dict[str, object]]
    enable_thinking: bool
    expected_answer: str
    expected_call: tuple[str, dict[str, object]] | None
    """Name and arguments, when the right answer is a tool call."""
    expected_reasoning: str | None

    def matches(
        self, content: str | None, tool_calls: Sequence[Mapping[str, object]] | None = None
    ) -> bool:
        """Whether an OpenAI assistant message with these two fields is the right answer."""
        calls = [_name_and_arguments(call) for call in tool_calls or ()]
        expected = [] if self.expected_call is None else [self.expected_call]
        return (content or "").strip() == self.expected_answer and calls == expected


def _name_and_arguments(call: Mapping[str, object]) -> tuple[object, object]:
    function = call.get("function", call)
    assert isinstance(function, Mapping)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return function.get("name"), arguments
    return function.get("name"), arguments


def weather_tool(rng: random.Random) -> dict[str, object]:
    """The weather tool as different clients would declare it."""
    note = rng.choice(phrases.CITY_NOTES)
    city = {"type": "string"} | ({"description": note} if note else {})
    return _function("get_weather", rng.choice(phrases.WEATHER_TOOL_NOTES), "city", city, rng)


def _function(
    name: str, note: str, argument: str, schema: dict[str, str], rng: random.Random
) -> dict[str, object]:
    parameters: dict[str, object] = {"type": "object", "properties": {argument: schema}}
    if rng.random() < 0.7:
        parameters["required"] = [argument]
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, object] = {"name": name}
    if rng.random() < 0.9:
        function["description"] = note
    return {"type": "function", "function": function | {"parameters": parameters}}


def _tools(rng: random.Random, weather_likely: bool) -> tuple[list[dict[str, object]], bool]:
    """The tools on offer, and whether the weather tool is one of them."""
    draw = rng.random()
    has_weather = draw < (0.7 if weather_likely else 0.2)
    tools = [weather_tool(rng)] if has_weather else []
    if rng.random() < 0.06:
        name, note, argument = rng.choice(phrases.OTHER_TOOLS)
        tools.append(_function(name, note, argument, {"type": "string"}, rng))
        rng.shuffle(tools)
    return tools, has_weather


def _weighted(weights: Mapping[Skill, int], last: Turn | None, rng: random.Random) -> Skill:
    able = [skill for skill in weights if possible(skill, last)]
    return rng.choices(able, [weights[skill] for skill in able])[0]


def conversation(
    turn_count: int, last_skill: Skill | None, rng: random.Random, *, prefer_unseen: bool = False
) -> Example:
    """Draws a conversation; the assistant message to learn is in its last turn."""
    first = _weighted(FIRST_SKILLS, None, rng)
    if turn_count == 1 and last_skill is not None:
        first = last_skill
    tools, has_weather = _tools(rng, Skill.WEATHER in (first, last_skill))
    turns: list[Turn] = []
    while len(turns) < turn_count:
        last = turns[-1] if turns else None
        skill = _weighted(NEXT_SKILLS, last, rng) if turns else first
        is_last = len(turns) == turn_count - 1
        if is_last and last_skill is not None and possible(last_skill, last):
            skill = last_skill
        scene = Scene(has_weather, last)
        turn = SKILLS[skill](rng, scene)
        for _ in range(40 if prefer_unseen and is_last else 0):
            if _all_held_out(turn.items):
                break
            turn = SKILLS[skill](rng, scene)
        turns.append(turn)
    return _cut(turns, tools, rng)


def _all_held_out(items: Sequence[Item]) -> bool:
    return all(is_held_out(item.kind, item.key) for item in items if item.kind not in EXEMPT)


def _cut(
    turns: Sequence[Turn],
    tools: list[dict[str, object]],
    rng: random.Random,
    system_share: float = 0.35,
) -> Example:
    """Writes the turns as messages, up to one assistant message of the last turn."""
    messages: list[Mapping[str, object]] = []
    items = [item for turn in turns for item in turn.items]
    if rng.random() < system_share:
        prompt = rng.choice(phrases.SYSTEM_PROMPTS)
        messages.append({"role": "system", "content": prompt})
        items.append(Item(Kind.SYSTEM, prompt))
    if len(turns) > 1:
        items.append(Item(Kind.CONVERSATION, ">".join(turn.skill.value for turn in turns)))
    for turn in turns[:-1]:
        messages.extend(_written(turn, f"call_{len(messages)}"))
    last = turns[-1]
    call = last.call if rng.random() < 0.55 else None
    # The whole last turn, less what the model is about to write.
    messages.extend(_written(last, f"call_{len(messages)}")[: 1 if call or not last.call else 3])
    return Example(
        skill=last.skill,
        messages=tuple(messages),
        tools=tuple(tools),
        thinking=rng.random() < 0.5,
        reasoning=call.reasoning if call else last.reasoning,
        answer="" if call else last.answer,
        call=call,
        items=tuple(items),
        last_items=last.items,
    )


def _written(turn: Turn, call_id: str) -> list[dict[str, object]]:
    """One turn as OpenAI messages."""
    messages: list[dict[str, object]] = [{"role": "user", "content": turn.user}]
    if turn.call is not None:
        function = {"name": "get_weather", "arguments": turn.call.arguments}
        calls = [{"id": call_id, "type": "function", "function": function}]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        response = {"role": "tool", "tool_call_id": call_id, "content": turn.call.response}
        messages.append(dict(response))
    messages.append({"role": "assistant", "content": turn.answer})
    return messages


def examples(seed: int) -> Iterator[Example]:
    """The endless training stream; nothing in it is held out."""
    rng = random.Random(seed)
    while True:
        example = conversation(rng.choice(TURN_COUNTS), None, rng)
        if not any(is_held_out(item.kind, item.key) for item in example.items):
            yield example


def drills(seed: int) -> Iterator[Example]:
    """Short conversations with nothing around them, so that many fit into a batch.

    Only a few tokens of a conversation are digits to work out or words to look up; without drills
    these are learned far later than everything else.
    """
    rng = random.Random(f"drills {seed}")
    while True:
        turns: list[Turn] = []
        for skill in rng.choices(tuple(DRILLS), tuple(DRILLS.values()))[0]:
            last = turns[-1] if turns else None
            if possible(skill, last):
                turns.append(SKILLS[skill](rng, Scene(has_weather_tool=False, last=last)))
        example = _cut(turns, [], rng, system_share=0.0)
        if not any(is_held_out(item.kind, item.key) for item in example.items):
            yield example


def held_out_questions(count: int, seed: int = 0) -> list[Question]:
    """Questions that no training example contained, evenly over skills and thinking on and off.

    A question of several turns has a combination of turns that training never had, and the item
    of its last turn is held out as well where its skill has a split.
    """
    rng = random.Random(f"held out {seed}")
    skills = list(Skill)
    questions: list[Question] = []
    while len(questions) < count:
        skill = skills[len(questions) % len(skills)]
        followup = skill in (Skill.ADD_MORE, Skill.AGAIN, Skill.AND_IN)
        turn_count = rng.choice((2, 2, 3, 4) if followup else (1, 1, 1, 2, 3))
        example = conversation(turn_count, skill, rng, prefer_unseen=True)
        if example.skill is skill and _is_unseen(example):
            questions.append(_question(example, len(questions) // len(skills) % 2 == 1))
    return questions


def _is_unseen(example: Example) -> bool:
    """Whether the last turn and the combination of turns are held out; earlier turns are free."""
    several = [item for item in example.items if item.kind is Kind.CONVERSATION]
    return _all_held_out([*example.last_items, *several])


def _question(example: Example, thinking: bool) -> Question:
    expected_call: tuple[str, dict[str, object]] | None = None
    if example.call is not None:
        expected_call = ("get_weather", {"city": example.call.city})
    return Question(
        kind=_kind(example),
        messages=[dict(message) for message in example.messages],
        tools=[dict(tool) for tool in example.tools],
        enable_thinking=thinking,
        expected_answer=example.answer,
        expected_call=expected_call,
        expected_reasoning=example.reasoning if thinking else None,
    )


def _kind(example: Example) -> str:
    """The skill, and for the weather which of its three forms."""
    if example.skill not in (Skill.WEATHER, Skill.AND_IN):
        return example.skill.value
    if example.call is not None:
        return f"{example.skill.value} call"
    has_result = example.messages[-1]["role"] == "tool"
    return f"{example.skill.value} {'answer' if has_result else 'refusal'}"
