"""tokenizer.json files that try to take all memory or time, or are not what they should be."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tests.neuron.text.models import byte_tokenizer


class Hostile(NamedTuple):
    """A file, and a text with which it does its worst."""

    name: str
    content: str
    text: str = "a" * 2_000


def usual() -> dict[str, Any]:
    """A good one."""
    found: dict[str, Any] = json.loads(byte_tokenizer().to_str())
    return found


_WRONG: tuple[Any, ...] = (
    None, 7, -1e308, "x", [], [[]], [["a"]], {}, {"type": "Sequence"}, {"type": "No"}, {"a": -1},
    {"a": 4_000_000_000},
)  # fmt: skip


def _with(
    name: str, text: str = "a" * 2_000, *, parts: Mapping[str, Any] | None = None, **more: Any
) -> Hostile:
    return Hostile(name, json.dumps({**usual(), **(parts or {}), **more}), text)


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _split(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, usual()["pre_tokenizer"]]}


def _normalizers(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def greedy() -> Iterator[Hostile]:
    """Those that take memory or time when they are used."""
    yield _with("doubling", normalizer=_normalizers(*[_replace("a", "aa")] * 40))
    yield _with("ten thousand", normalizer=_normalizers(*[_replace("a", "a" * 10_000)] * 3))
    yield _with(
        "prepend", normalizer=_normalizers(*[{"type": "Prepend", "prepend": "a" * 9999}] * 99)
    )
    for number, regex in enumerate(
        (r"(a+)+$", r"(a|aa)+$", r"(.*)*b", r"(?=(a+))\1*b", r"(a*)*c$")
    ):
        yield _with(f"regex {number}", "a" * 40 + "!", pre_tokenizer=_split(regex))
        yield _with(f"long regex {number}", "a" * 100_000 + "!", pre_tokenizer=_split(regex))
        normalizer = {"type": "Replace", "pattern": {"Regex": regex}, "content": "b"}
        yield _with(f"normalizer {number}", "a" * 40 + "!", normalizer=normalizer)
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}] * 100_000
        + [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            "<|bos|>": {"id": "<|bos|>", "ids": [256] * 10_000, "tokens": ["x"] * 10_000}
        },
    }
    yield _with("post-processor", post_processor=template)
    yield _with("one word", "ab" * 200_000, pre_tokenizer=_bytes_without_regex(), model=_pairs())


def _bytes_without_regex() -> dict[str, Any]:
    return {**usual()["pre_tokenizer"], "use_regex": False}


def _pairs() -> dict[str, Any]:
    """Merges that build words of any length."""
    model = usual()["model"]
    vocabulary = dict(model["vocab"])
    merges, word = [], "ab"
    merges.append(["a", "b"])
    for _ in range(12):
        vocabulary[word] = len(vocabulary) + 1_000
        merges.append([word, word])
        word += word
    vocabulary[word] = len(vocabulary) + 1_000
    return {**model, "vocab": vocabulary, "merges": merges}


def broken() -> Iterator[Hostile]:
    """Those that cannot be used; each must be refused, or do no harm."""
    good = usual()
    for key in good:
        for wrong in _WRONG:
            yield _with(f"{key} = {wrong!r}", parts={key: wrong})
    for key in good["model"]:
        for wrong in _WRONG:
            yield _with(f"model.{key} = {wrong!r}", model={**good["model"], key: wrong})
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        for depth in (100, 1_000, 100_000):
            opening = f'{{"type": "Sequence", "{inner}": ['
            yield Hostile(f"deep {key} {depth}", _deep(key, opening * depth + "]}" * depth))
    yield Hostile("deep list", "[" * 1_000_000)
    yield Hostile("deep object", '{"a":' * 1_000_000)
    yield Hostile("empty", "")
    yield Hostile("no JSON", "\x00\xff" * 100)
    yield Hostile("another", json.dumps([good] * 3))
    model = good["model"]
    vocabulary = model["vocab"]
    long = {**vocabulary, "a" * 20_000: 300}
    yield _with("long token", model={**model, "vocab": long})
    far = {**vocabulary, "far": 4_294_967_000}
    yield _with("far token", model={**model, "vocab": far})
    yield _with("merges", model={**model, "merges": [["a", "b"]] * 300_000})
    names = [dict(_added(n)) for n in range(60_000)]
    yield _with("added tokens", added_tokens=good["added_tokens"] + names)


def _added(number: int) -> dict[str, Any]:
    one = {"id": 1_000 + number, "content": f"<{number}>", "special": number % 2 == 0}
    return one | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def _deep(key: str, value: str) -> str:
    text = json.dumps({**usual(), key: "HERE"})
    return text.replace('"HERE"', value)
