"""Streamed text equals the whole text, and stops where a search over the whole text would."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from neuron import demo_model
from neuron.engine.loader import without_merges
from neuron.engine.output.answer import AnswerText
from neuron.engine.output.detokenizer import MOST_PENDING, Detokenizer
from neuron.ipc.messages import SamplingParams
from protocol.generate import FinishReason
from tests.support.properties import examples
from tests.support.tiny_models import END, make_tokenizer

BYTES = make_tokenizer()


def text_tokens(text: str) -> list[int]:
    return list(text.encode())


def stream(tokens: list[int], stops: tuple[str, ...] = (), prompt: list[int] | None = None) -> str:
    """Everything that leaves, up to a stop or the end."""
    detokenizer = Detokenizer(BYTES, prompt or text_tokens("user: "), stops)
    text = ""
    for token in tokens:
        piece, stop = detokenizer.push(token)
        text += piece
        if stop is not None:
            return text
    return text + detokenizer.flush()[0]


@pytest.mark.parametrize("text", ["plain", "é漢字🙂", "👩‍👩‍👧 family", "\n \t", "a\ufffdb", ""])
def test_text_survives_streaming(text: str) -> None:
    assert stream(text_tokens(text)) == text


def test_a_character_leaves_only_when_it_is_whole() -> None:
    detokenizer = Detokenizer(BYTES, text_tokens("x"), ())
    pieces = [detokenizer.push(token)[0] for token in "🙂!".encode()]
    assert pieces == ["", "", "", "🙂", "!"]


def test_unfinished_bytes_are_flushed_as_replacement() -> None:
    assert stream(text_tokens("a") + list("🙂".encode()[:3])) == "a\ufffd"


def test_special_tokens_have_no_text() -> None:
    assert stream([*text_tokens("a"), END, *text_tokens("b")]) == "ab"


def test_a_prompt_that_ends_inside_a_character_leaks_nothing() -> None:
    assert stream(text_tokens("ok"), prompt=list("🙂".encode()[:2])) == "ok"


@given(st.lists(st.integers(0, 319), max_size=60))
@examples(200)
def test_any_bytes_stream_as_they_decode_at_once(tokens: list[int]) -> None:
    assert stream(tokens) == BYTES.decode(tokens, skip_special_tokens=True)


BROKEN = st.sampled_from([END, 0xFF, 0x80, 0xE6, 0xBC, 0xA2, 0xF0, 0x9F, 0x99, ord("a")])


@given(st.lists(BROKEN, min_size=MOST_PENDING, max_size=200))
@examples(300)
def test_long_runs_of_broken_bytes_stream_as_they_decode_at_once(tokens: list[int]) -> None:
    assert stream(tokens) == BYTES.decode(tokens, skip_special_tokens=True)


def test_a_run_is_not_cut_inside_a_broken_character() -> None:
    """Its three bytes are one U+FFFD together, and one each apart."""
    tokens = [0xFF] * (MOST_PENDING - 4) + [0xF0, 0x9F, 0x99, 0xFF]
    assert stream(tokens) == "\ufffd" * (MOST_PENDING - 4 + 2)


@pytest.mark.parametrize("token", [END, 0xFF, ord("a")])
def test_no_token_makes_the_later_ones_dearer(token: int) -> None:
    """Special tokens have no text and broken bytes no whole character: neither piles up."""
    detokenizer = Detokenizer(BYTES, [1], ())
    for _ in range(2000):
        detokenizer.push(token)
    assert len(detokenizer._pending) < MOST_PENDING


def test_a_space_survives_special_tokens_before_it() -> None:
    vocab = {"<unk>": 0, "▁Hello": 1, "▁world": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<end>"])
    detokenizer = Detokenizer(tokenizer, [1], ())
    for _ in range(3 * MOST_PENDING):
        assert detokenizer.push(3) == ("", None)
    assert detokenizer.push(2) == (" world", None)


def test_the_first_space_of_an_answer_is_kept() -> None:
    """Metaspace decoders drop a leading space; the prompt before it shows that it is inside."""
    vocab = {"<unk>": 0, "▁Hello": 1, "▁world": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    assert Detokenizer(tokenizer, [1], ()).push(2) == (" world", None)


def answer(max_tokens: int = 10, **sample: Any) -> AnswerText:
    made = SamplingParams(**{"max_tokens": max_tokens} | sample)
    return AnswerText(BYTES, text_tokens("x"), made, max_tokens)


def test_an_end_token_ends_without_text_and_frees_what_was_held() -> None:
    one = answer(stop=("abc",), end_tokens=(END,))
    assert one.push(ord("a")).text == ""
    piece = one.push(END)
    assert (piece.text, piece.finish, piece.stop_text) == ("a", FinishReason.STOP, "")


def test_the_last_token_ends_by_length_with_its_text() -> None:
    one = answer(2)
    assert one.push(ord("a")).finish is None
    piece = one.push(0xE6)
    assert (piece.text, piece.finish) == ("\ufffd", FinishReason.LENGTH)


def test_a_stop_on_the_last_token_is_a_stop() -> None:
    one = answer(2, stop=("ab",))
    one.push(ord("a"))
    piece = one.push(ord("b"))
    assert (piece.text, piece.finish, piece.stop_text) == ("", FinishReason.STOP, "ab")


def test_without_merges_everything_decodes_the_same() -> None:
    content = (Path(next(iter(demo_model.__path__))) / "tokenizer.json").read_bytes()
    shorter = without_merges(content)
    assert len(shorter) < 0.8 * len(content)
    full, stripped = Tokenizer.from_buffer(content), Tokenizer.from_buffer(shorter)
    count = full.get_vocab_size()
    for start in range(0, count, 7):
        ids = [(start + 31 * n) % count for n in range(40)]
        for skip in (True, False):
            expected = full.decode(ids, skip_special_tokens=skip)
            assert stripped.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"model": 3}', b'{"model": {"type": "Unigram", "vocab": []}}', b"\xff"],
)
def test_what_has_another_form_is_left_to_the_library(content: bytes) -> None:
    assert without_merges(content) == content
