"""A stream stops where a search over its whole text would, and holds back no more than it must."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.output.stop_scanner import StopScanner
from tests.neuron.engine.output.test_detokenizer import stream, text_tokens
from tests.support.properties import examples


def search(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop that ends first; the longest of those that end together."""
    ends = [(i + len(s), i) for s in stops for i in range(len(text)) if text.startswith(s, i)]
    return text[: min(ends)[1]] if ends else text


@given(
    st.text("ab🙂", max_size=40),
    st.lists(st.text("ab🙂", min_size=1, max_size=5), max_size=4).map(tuple),
    st.randoms(use_true_random=False),
)
@examples(400)
def test_stops_equal_a_search_over_the_whole_text(
    text: str, stops: tuple[str, ...], rng: random.Random
) -> None:
    expected = search(text, stops)
    assert stream(text_tokens(text), stops) == expected

    scanner, left, rest = StopScanner(stops), "", text  # pieces of any length, as tokens are
    while rest:
        cut = rng.randint(1, 6)
        piece, stop = scanner.push(rest[:cut])
        rest, left = rest[cut:], left + piece
        assert expected.startswith(left), "text left that a stop would have taken back"
        if stop is not None:
            break
    else:
        left += scanner.flush()
    assert left == expected


def test_the_hold_back_is_the_smallest() -> None:
    scanner = StopScanner(("</end>", "xyz"))
    assert scanner.push("text <") == ("text ", None)
    assert scanner.push("/") == ("", None)
    assert scanner.push("a xy") == ("</a ", None)
    assert scanner.push("!") == ("xy!", None)


def test_the_stop_that_ends_first_wins_however_tokens_fall() -> None:
    stops = ("bcd", "abcde", "cd")
    assert StopScanner(stops).push("abcde") == ("a", "bcd")
    assert stream(text_tokens("abcde"), stops) == "a"


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6).map(tuple),
)
@examples(400)
def test_what_is_held_is_exactly_what_could_begin_a_stop(text: str, stops: tuple[str, ...]) -> None:
    """Two letters only: stops that are one another's beginnings, ends and middles."""
    scanner, left = StopScanner(stops), ""
    for index, character in enumerate(text, 1):
        piece, stop = scanner.push(character)
        left += piece
        if stop is not None:
            assert left == search(text, stops)
            return
        seen = text[:index]
        ends = [seen[at:] for at in range(len(seen) + 1)]
        held = next(end for end in ends if any(stop.startswith(end) for stop in stops))
        assert left == seen.removesuffix(held)


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_stop_across_characters_of_several_bytes(cut: int) -> None:
    """The tokens are bytes: the stop's first and last character come in pieces."""
    text = "x" * cut + "é🙂漢 tail"
    assert stream(text_tokens(text), ("é🙂漢",)) == "x" * cut
    assert stream(text_tokens(text), ("🙂漢!", "🙂漢")) == "x" * cut + "é"


def test_many_long_stops_cost_no_more_per_character() -> None:
    """The worst text for a search from every place: all of it but one letter matches."""
    text = ("a" * 2000 + "c") * 10
    times = []
    for count in (1, 32):
        scanner = StopScanner(tuple("a" * 1999 + "b" + chr(97 + i) for i in range(count)))
        started = time.perf_counter()
        for character in text:
            scanner.push(character)
        times.append(time.perf_counter() - started)
    assert times[1] < 20 * times[0]
    assert times[1] < 1.0, "20,000 characters; a search from every place takes minutes"
