"""Log-probabilities find the text that their tokens made."""

import random

import pytest

from neuron.text.aligner import Aligner
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import TokenLogprobs


def entry(text: str | bytes) -> TokenLogprobs:
    return TokenLogprobs(text if isinstance(text, bytes) else text.encode(), -1.0)


def aligned(tokens: list[str | bytes], parts: list[AnswerPart]) -> list[bytes]:
    """The tokens that were found for the text, when all of them came before it."""
    aligner = Aligner()
    aligner.add(entry(token) for token in tokens)
    given = aligner.give(parts)
    return [e.token for part in given if isinstance(part, Text) for e in part.logprobs]


@pytest.mark.parametrize(
    ("tokens", "parts", "found"),
    [
        (["Hi", " there"], [Text("Hi there")], [b"Hi", b" there"]),
        (["Hi", " there"], [Text("Hi"), Text(" there")], [b"Hi", b" there"]),
        (["Hi there"], [Text("Hi"), Text(" there")], [b"Hi there"]),
        (["<think>", "Hi", "</think>", "\n\n", "Hi"], [Reasoning("Hi"), Text("Hi")], [b"Hi"]),
        (["Yes", " END", " no"], [Text("Yes ")], [b"Yes", b" END"]),
        ([b"\xf0\x9f", b"\x8e\x89", "!"], [Text("🎉!")], [b"\xf0\x9f", b"\x8e\x89", b"!"]),
        (["", "Hi", ""], [Text("Hi")], [b"Hi"]),
        (["a", "<tool_call>", "{}", "b"], [Text("a"), ToolCallPart(0), Text("b")], [b"a", b"b"]),
        (["a"], [], []),
        ([], [Text("a")], []),
    ],
)
def test_alignment(tokens: list[str | bytes], parts: list[AnswerPart], found: list[bytes]) -> None:
    assert aligned(tokens, parts) == found


def test_text_that_is_held_back_and_cut_anywhere() -> None:
    chance = random.Random(3)
    for _ in range(300):
        tokens = [chance.choice(["ä", " b", "c🎉", "\n", "dd"]) for _ in range(12)]
        text = "".join(tokens)
        aligner, said = Aligner(), 0
        found: list[TokenLogprobs] = []
        for number, token in enumerate(tokens, 1):
            aligner.add([entry(token)])
            end = chance.randint(said, len("".join(tokens[:number])))
            parts: list[AnswerPart] = [Text(text[said:end])] if end > said else []
            for part in aligner.give(parts):
                assert isinstance(part, Text)
                found += part.logprobs
            said = end
        for part in aligner.give([Text(text[said:])] if text[said:] else []):
            assert isinstance(part, Text)
            found += part.logprobs
        assert b"".join(e.token for e in found).decode() == text
