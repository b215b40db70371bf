"""The demo model's skills: each function draws one turn of a conversation with its right answer.

A turn is complete in itself; :mod:`training.data` strings turns together and decides where the
conversation is cut. Every skill is a function ``(rng, scene) -> Turn``.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from training import lexicon, phrases
from training.split import Item, Kind

LARGEST_COUNT = 60


class Skill(StrEnum):
    """What a turn asks for."""

    TALK = "talk"
    FACT = "fact"
    SUM = "sum"
    WORDS = "words"
    COUNT = "count"
    WEATHER = "weather"
    UNKNOWN = "unknown"
    ADD_MORE = "add-more"
    """Follows a sum: needs its result."""
    AGAIN = "again"
    """Follows anything: needs the last answer."""
    AND_IN = "and-in"
    """Follows a weather question: needs its topic."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call with what the tool answers."""

    city: str
    response: str
    reasoning: str

    @property
    def arguments(self) -> str:
        """The arguments as JSON text."""
        return json.dumps({"city": self.city}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; with a call, the answer is the one after the tool's response."""

    skill: Skill
    user: str
    reasoning: str
    answer: str
    items: tuple[Item, ...]
    call: Call | None = None
    result: int | None = None
    """What a following "add that" starts from."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the next turn can see: whether the weather tool is offered, and the turn before."""

    has_weather_tool: bool
    last: Turn | None = None


def casual(template: str, rng: random.Random) -> str:
    """The template as people type it: lower case, or without the final mark, or with another."""
    if rng.random() < 0.3:
        template = template.lower()
    elif rng.random() < 0.1:
        template = template[:1].lower() + template[1:]
    draw = rng.random()
    if draw < 0.35 and len(template) > 1:
        template = template.rstrip(".?!")
    elif draw < 0.42:
        template = template.rstrip(".?!") + rng.choice((".", "!", "?", " ?", "..", "\n"))
    return template


def talk(rng: random.Random, scene: Scene) -> Turn:
    """Greetings, thanks, and (one time in four) who the model is."""
    answer = phrases.IDENTITY if rng.random() < 0.25 else rng.choice(tuple(phrases.SMALL_TALK))
    user = casual(rng.choice(phrases.SMALL_TALK[answer]), rng)
    reasoning = {
        phrases.IDENTITY: "The user asks who I am.",
        phrases.UNKNOWN: "The user asks what I can do.",
    }.get(answer, "The user is polite.")
    return Turn(Skill.TALK, user, reasoning, answer, (Item(Kind.FIXED, answer),))


def fact(rng: random.Random, scene: Scene) -> Turn:
    """One of the few facts that the model knows by heart."""
    answer = rng.choice(tuple(phrases.FACTS))
    user = casual(rng.choice(phrases.FACTS[answer]), rng)
    return Turn(Skill.FACT, user, "I know this fact.", answer, (Item(Kind.FIXED, answer),))


def sum_item(a: int, b: int) -> Item:
    """The item of a sum; the order of the numbers does not matter."""
    return Item(Kind.SUM, f"{min(a, b)}+{max(a, b)}")


def column_addition(a: int, b: int) -> str:
    """The school method: ones first, then the tens with the carry."""
    ones = a % 10 + b % 10
    tens = a // 10 + b // 10 + ones // 10
    carry = ones >= 10
    return (
        f"{a % 10} + {b % 10} = {ones}{', carry 1' if carry else ''}. "
        f"{a // 10} + {b // 10}{' + 1' if carry else ''} = {tens}."
    )


def _sum_turn(skill: Skill, user: str, a: int, b: int) -> Turn:
    answer = f"{a} + {b} = {a + b}."
    return Turn(skill, user, column_addition(a, b), answer, (sum_item(a, b),), result=a + b)


def addition(rng: random.Random, scene: Scene) -> Turn:
    """The sum of two numbers below 100; larger numbers are politely refused."""
    # Small sums are drawn more often, so that "add 5 to that" often stays below 100 as well.
    limit = rng.choice((20, 50, 50, 100, 100, 100))
    a, b = rng.randrange(limit), rng.randrange(limit)
    template = casual(rng.choice(phrases.SUMS), rng)
    if rng.random() >= 0.06:
        return _sum_turn(Skill.SUM, template.format(a=a, b=b), a, b)
    a = rng.randrange(100, rng.choice((200, 1000, 10000)))
    if rng.random() < 0.5:
        a, b = b, a
    elif rng.random() < 0.5:
        b = rng.randrange(100, 1000)
    return _too_large(Skill.SUM, template.format(a=a, b=b))


def _too_large(skill: Skill, user: str) -> Turn:
    reasoning = "This number is too large for me."
    return Turn(skill, user, reasoning, phrases.SUM_LIMIT, (Item(Kind.UNKNOWN, user),))


def add_more(rng: random.Random, scene: Scene) -> Turn:
    """Adds to the result of the turn before."""
    assert scene.last is not None
    assert scene.last.result is not None
    n = rng.randrange(1, 100) if rng.random() < 0.5 else rng.randrange(1, 20)
    user = casual(rng.choice(phrases.ADD_MORE), rng).format(n=n)
    if scene.last.result >= 100:
        return _too_large(Skill.ADD_MORE, user)
    return _sum_turn(Skill.ADD_MORE, user, scene.last.result, n)


def words(rng: random.Random, scene: Scene) -> Turn:
    """Repeats one to seven words, whatever they are."""
    chosen = [lexicon.word(rng) for _ in range(rng.choice((1, 2, 3, 3, 3, 4, 4, 5, 6, 7)))]
    text = (", " if rng.random() < 0.12 else " ").join(chosen)
    shell = rng.choice(phrases.REPEATS)
    shell = shell.lower() if rng.random() < 0.3 else shell
    user = shell.format(words=text) + rng.choice(("", "", "", "", "", ".", "!"))
    reasoning = "I should repeat these words."
    return Turn(Skill.WORDS, user, reasoning, text, (Item(Kind.WORDS, " ".join(chosen)),))


def count(rng: random.Random, scene: Scene) -> Turn:
    """Counts from 1 to at most 60; the long answer is there for watching a stream."""
    template = casual(rng.choice(phrases.COUNTS), rng)
    if rng.random() < 0.08:
        n = rng.randrange(LARGEST_COUNT + 1, rng.choice((100, 1000, 100000)))
        user, items = template.format(n=n), (Item(Kind.UNKNOWN, template.format(n=n)),)
        return Turn(Skill.COUNT, user, "This is too far for me.", phrases.COUNT_LIMIT, items)
    n = rng.randrange(1, LARGEST_COUNT + 1)
    answer = " ".join(str(i) for i in range(1, n + 1))
    user, items = template.format(n=n), (Item(Kind.COUNT, str(n)),)
    return Turn(Skill.COUNT, user, f"I should count to {n}.", answer, items)


def _weather_turn(skill: Skill, user: str, city: str, rng: random.Random, scene: Scene) -> Turn:
    items = (Item(Kind.CITY, city),)
    if not scene.has_weather_tool:
        return Turn(skill, user, "I have no tool for the weather.", phrases.NO_TOOL, items)
    sky, degrees = rng.choice(phrases.SKIES), rng.randrange(-25, 45)
    answer = f"The weather in {city} is {sky}, {degrees} degrees."
    response = weather_response(city, sky, degrees, rng)
    call = Call(city, response, f"I should look up the weather in {city}.")
    return Turn(skill, user, "The tool told me the weather.", answer, items, call)


def weather_response(city: str, sky: str, degrees: int, rng: random.Random) -> str:
    """What a client's tool may answer: JSON in a few shapes, now and then plain text."""
    if rng.random() < 0.12:
        return f"{sky}, {degrees} degrees"
    pairs: list[tuple[str, str | int]] = [
        (rng.choice(("weather", "weather", "condition", "conditions", "sky")), sky),
        (rng.choice(("temperature", "temperature", "temp", "temperature_c", "degrees")), degrees),
    ]
    if rng.random() < 0.3:
        pairs.reverse()
    if rng.random() < 0.3:
        pairs.insert(rng.choice((0, 2)), ("city", city))
    separators = (",", ":") if rng.random() < 0.2 else (", ", ": ")
    return json.dumps(dict(pairs), ensure_ascii=False, separators=separators)


def weather(rng: random.Random, scene: Scene) -> Turn:
    """Calls the tool when it is offered, otherwise says that it cannot know."""
    city = lexicon.city(rng)
    user = casual(rng.choice(phrases.WEATHER), rng).format(city=city)
    return _weather_turn(Skill.WEATHER, user, city, rng, scene)


def and_in(rng: random.Random, scene: Scene) -> Turn:
    """Another city, without naming the topic again."""
    city = lexicon.city(rng)
    user = casual(rng.choice(phrases.AND_IN), rng).format(city=city)
    return _weather_turn(Skill.AND_IN, user, city, rng, scene)


def again(rng: random.Random, scene: Scene) -> Turn:
    """Says the last answer once more."""
    assert scene.last is not None
    user = casual(rng.choice(phrases.AGAIN), rng)
    reasoning = "I should say my last answer again."
    return Turn(Skill.AGAIN, user, reasoning, scene.last.answer, (), result=scene.last.result)


def unknown(rng: random.Random, scene: Scene) -> Turn:
    """Something the model cannot do."""
    task = rng.choice(lexicon.OPEN_TASKS)
    user = casual(task, rng).format(
        word=lexicon.topic(rng),
        word2=lexicon.topic(rng),
        name=lexicon.made_up_word(rng).capitalize(),
        country=rng.choice(lexicon.OTHER_COUNTRIES),
        a=rng.randrange(100),
        b=rng.randrange(100),
        c=rng.randrange(100),
    )
    # A task without a gap is one text: it can be learned or held out, but not both.
    items = (Item(Kind.UNKNOWN if "{" in task else Kind.FIXED, user),)
    return Turn(Skill.UNKNOWN, user, "I do not know how to do this.", phrases.UNKNOWN, items)


SKILLS: dict[Skill, Callable[[random.Random, Scene], Turn]] = {
    Skill.TALK: talk,
    Skill.FACT: fact,
    Skill.SUM: addition,
    Skill.WORDS: words,
    Skill.COUNT: count,
    Skill.WEATHER: weather,
    Skill.UNKNOWN: unknown,
    Skill.ADD_MORE: add_more,
    Skill.AGAIN: again,
    Skill.AND_IN: and_in,
}


def possible(skill: Skill, last: Turn | None) -> bool:
    """Whether this skill makes sense after the given turn."""
    if skill is Skill.ADD_MORE:
        return last is not None and last.result is not None
    if skill is Skill.AGAIN:
        return last is not None and len(last.answer) <= 150
    if skill is Skill.AND_IN:
        return last is not None and last.skill in (Skill.WEATHER, Skill.AND_IN)
    return True
