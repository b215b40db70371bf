"""Bounds how much text one token can stand for, so that a text that cannot fit is refused unread.

The bound must never be too small, or a text that fits would be refused. So it exists only for
tokenizers whose parts are all known to leave no text out; for any other there is none.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from neuron.text.byte_alphabet import BYTE_LEVEL_ALPHABET

_COMPOSED = 4
"""Most characters that Unicode's normal forms join to one."""
_KEEPING = ("ByteLevel", "Digits", "Metaspace", "UnicodeScripts")
"""Pre-tokenizers that leave nothing out; so does ``Split`` unless its behavior is ``Removed``."""

_UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))
"""The bytes that occur in a text; some vocabularies leave out the others."""
_ALPHABET = tuple(BYTE_LEVEL_ALPHABET[byte] for byte in _UTF8_BYTES)


def chars_per_token(backend: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> int | None:
    """The most characters of a text that one token can stand for; None where that is unknown.

    *vocabulary* has all tokens, added ones included.
    """
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None  # such a token takes any white space beside it with it
    shrinks = _shrinks(_parts(backend.normalizer, "normalizers"))
    if shrinks is None or not _keeps_all(_parts(backend.pre_tokenizer, "pretokenizers")):
        return None
    if not _knows_every_byte(backend, vocabulary):
        return None
    return max(map(len, vocabulary), default=1) * shrinks


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The description of a normalizer or pre-tokenizer, sequences flattened."""
    if component is None:
        return []
    return list(_flat(json.loads(component.__getstate__()), key))


def _flat(part: dict[str, Any], key: str) -> Iterable[dict[str, Any]]:
    if part.get("type") != "Sequence":
        yield part
        return
    for inner in part.get(key, []):
        yield from _flat(inner, key)


def _shrinks(normalizers: list[dict[str, Any]]) -> int | None:
    """How many times shorter they can make a text; None if unknown."""
    factor = 1
    for part in normalizers:
        match part:
            case {"type": "NFC" | "NFKC"}:
                factor *= _COMPOSED
            case {"type": "NFD" | "NFKD" | "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(
                old
            ) <= len(new):
                pass
            case _:
                return None
    return factor


def _keeps_all(pre_tokenizers: list[dict[str, Any]]) -> bool:
    return all(
        part.get("type") in _KEEPING
        or (part.get("type") == "Split" and part.get("behavior") != "Removed")
        for part in pre_tokenizers
    )


def _knows_every_byte(backend: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> bool:
    """Whether no character becomes an unknown token, which may stand for any number of them."""
    if type(backend.model).__name__ not in ("BPE", "Unigram"):
        return False
    names = {part.get("type") for part in _parts(backend.pre_tokenizer, "pretokenizers")}
    if "ByteLevel" in names:
        return all(character in vocabulary for character in _ALPHABET)
    falls_back = bool(getattr(backend.model, "byte_fallback", False))
    return falls_back and all(f"<0x{byte:02X}>" in vocabulary for byte in _UTF8_BYTES)
