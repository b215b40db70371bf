"""Text → token ids, and which tokens end an answer; from the files of a model folder.

Knows tokenizer.json and the three files in which model authors name end tokens. Decoding happens
in the engine, token by token.
"""

import asyncio
import hashlib
from array import array
from pathlib import Path
from typing import Self

import msgspec
import tokenizers

from neuron.text.files import broken, read_config
from protocol.errors import ErrorCode, FleetError

TOKENIZER_FILE = "tokenizer.json"
_IN_A_THREAD_FROM_CHARACTERS = 20_000
"""Encoding takes about a microsecond per character: longer texts would hold up the event loop."""


class _GenerationConfig(msgspec.Struct, frozen=True):
    eos_token_id: int | list[int] | None = None


class _AddedToken(msgspec.Struct, frozen=True):
    content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
    eos_token: str | _AddedToken | None = None


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(self, inner: tokenizers.Tokenizer, end_tokens: tuple[int, ...]) -> None:
        self._inner = inner
        self.end_tokens = end_tokens
        """Every token that ends an answer, ascending."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises ``FleetError`` naming the file that is missing or damaged."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"The model folder {folder} cannot be used: it has no {TOKENIZER_FILE}. "
                "Download the model again, or save its tokenizer in the fast format.",
                param="model",
            )
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise broken(path, f"the tokenizer cannot be read ({error})") from None
        inner.no_truncation()
        inner.no_padding()
        return cls(inner, _end_tokens(folder, inner))

    @property
    def vocabulary_size(self) -> int:
        """Tokens that can be encoded, added ones included."""
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt; special tokens in the text become their ids."""
        # Not encode(): that holds the GIL (1.4 s for a megabyte), and computes offsets as well.
        ids: list[int] = self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    async def encode_async(self, text: str) -> list[int]:
        """As :meth:`encode`; long texts in a thread, so that the event loop goes on."""
        if len(text) < _IN_A_THREAD_FROM_CHARACTERS:
            return self.encode(text)
        return await asyncio.to_thread(self.encode, text)


def prompt_hash(tokens: list[int]) -> str:
    """A digest by which two attempts know that they have rendered the same prompt."""
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16).hexdigest()


def _end_tokens(folder: Path, inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The union of what the three files say: authors put the chat's end token into any of them."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        config = read_config(folder / name, _GenerationConfig)
        eos = config.eos_token_id if config else None
        ids.update([eos] if isinstance(eos, int) else eos or [])
    named = read_config(folder / "tokenizer_config.json", _TokenizerConfig)
    if named and named.eos_token:
        token = named.eos_token if isinstance(named.eos_token, str) else named.eos_token.content
        known = inner.token_to_id(token)
        if known is not None:
            ids.add(known)
    return tuple(sorted(ids))
