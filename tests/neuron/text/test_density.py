"""The bound on a token's text is never too small, whatever the tokenizer's parts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from neuron.text.density import chars_per_token
from tests.neuron.text.models import byte_tokenizer
from tests.support.properties import examples

NORMALIZERS: tuple[Any, ...] = (
    None,
    normalizers.NFC(),
    normalizers.NFKC(),
    normalizers.NFD(),
    normalizers.Prepend("_"),
    normalizers.Replace(" ", "\u2581"),
    normalizers.Replace("aaaa", "a"),
    normalizers.Replace(Regex("a+"), "b"),
    normalizers.Lowercase(),
    normalizers.Strip(),
    normalizers.StripAccents(),
    normalizers.Sequence([normalizers.NFD(), normalizers.NFC()]),
    normalizers.Sequence([normalizers.Replace("aa", "a"), normalizers.NFC()]),
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS: tuple[Any, ...] = (
    BYTES,
    pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), BYTES]),
    pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), BYTES]),
    pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), BYTES]),
    pre_tokenizers.Whitespace(),
    None,
)


def merged() -> Tokenizer:
    """With some words."""
    plain = byte_tokenizer()
    vocabulary = plain.get_vocab(with_added_tokens=False)
    words = ("aa", "aaaa", "\u0120\u0120", "aaaaaaaa")
    merges = [("a", "a"), ("aa", "aa"), ("\u0120", "\u0120"), ("aaaa", "aaaa")]
    vocabulary |= {word: 1_000 + number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = BYTES
    return tokenizer


texts = st.one_of(
    st.text(),
    st.text("a \u0301\u1100\u1161\u11a8e\u00e9\ufb01", max_size=200),
    st.integers(1, 300).map(lambda n: "a" * n),
    st.integers(1, 300).map(lambda n: " " * n),
)


@examples(400)
@given(st.sampled_from(NORMALIZERS), st.sampled_from(PRE_TOKENIZERS), st.booleans(), texts)
def test_it_is_never_too_small(
    normalizer: Any, pre_tokenizer: Any, strips: bool, text: str
) -> None:
    tokenizer = merged()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if strips:
        tokenizer.add_special_tokens([AddedToken("<s>", lstrip=True, special=True)])
        text = text + " " * 50 + "<s>"
    most = chars_per_token(tokenizer, tokenizer.get_vocab())
    if most is not None:
        assert len(text) <= most * len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_usual_tokenizers_have_one() -> None:
    tokenizer = merged()
    assert chars_per_token(tokenizer, tokenizer.get_vocab()) == 8
    tokenizer = byte_tokenizer()
    assert chars_per_token(tokenizer, tokenizer.get_vocab()) == len("<|im_start|>")
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"ab": 256}
    tokenizer = Tokenizer(models.BPE(vocab=fallback, merges=[], byte_fallback=True))
    assert chars_per_token(tokenizer, tokenizer.get_vocab()) == 6


def test_what_unicode_joins_counts() -> None:
    """Four characters become one, which has three bytes and so three tokens."""
    plain = byte_tokenizer().get_vocab(with_added_tokens=False)
    tokenizer = Tokenizer(models.BPE(vocab=plain, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.normalizer = BYTES, normalizers.NFC()
    text = "\u03b1\u0313\u0300\u0345" * 10
    count = len(tokenizer.encode(text, add_special_tokens=False).ids)
    most = chars_per_token(tokenizer, tokenizer.get_vocab())
    assert most is not None
    assert count < len(text) <= count * most


@pytest.mark.parametrize("missing", ["a", "\u0120", "\u0100"])
def test_without_some_byte_there_is_none(missing: str) -> None:
    """A character without a token becomes nothing at all."""
    vocabulary = byte_tokenizer().get_vocab(with_added_tokens=False)
    del vocabulary[missing]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = BYTES
    assert chars_per_token(tokenizer, tokenizer.get_vocab()) is None
