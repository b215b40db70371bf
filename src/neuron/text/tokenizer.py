"""A model's tokenizer: prompt text to token ids and back.

Owns tokenizer.json, read by the ``tokenizers`` library, whose Rust code runs without the
interpreter's lock. Knows nothing of conversations (``template``) nor of incremental decoding, which
the engine does.
"""

import asyncio
import hashlib
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tokenizers

from neuron.text.files import broken
from neuron.text.generation import end_token_ids
from protocol.errors import ErrorCode, FleetError

TOKENIZER_FILE = "tokenizer.json"

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet, in which byte-level vocabularies are written: printable bytes stand for
    themselves, the others for the characters from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }


_BYTE_OF = _byte_characters()

INLINE_CHARS = 2_048
"""Texts up to this size take less than a millisecond: no thread is worth its while."""


class Tokenizer:
    """Encodes and decodes for one model; safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, end_ids: frozenset[int]) -> None:
        """Use :meth:`load`."""
        # some files ask for the fixed lengths that training batches had
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._is_byte_level = "ByteLevel" in str(backend.decoder)
        self.end_ids = end_ids
        """The tokens that end an answer."""
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        """How many tokens there are, added ones included."""
        self.special_ids: Mapping[str, int] = MappingProxyType(
            {
                token.content: identity
                for identity, token in backend.get_added_tokens_decoder().items()
                if token.special
            }
        )
        """Control tokens, which are no text of an answer, by their text."""

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of the model in *folder*.

        Raises :class:`FleetError` (INVALID_REQUEST) when tokenizer.json is missing or broken.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"The model in {folder} cannot be used: it has no {TOKENIZER_FILE}, and other "
                f"tokenizer formats are not read. Save its tokenizer as {TOKENIZER_FILE} (loading "
                f"and saving it with transformers' AutoTokenizer does that).",
                param="model",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for what it cannot parse
            raise broken(path, f"the tokenizers library refuses it ({error})") from error
        return cls(backend, end_token_ids(folder, backend.token_to_id))

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a rendered prompt; special tokens in the text are recognised.

        Nothing is added, because the template has written what belongs there; to a text that no
        template has made, *add_special* adds what the model's texts begin with.
        """
        # the fast variant leaves out character offsets: a third less time
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special)
        ids: list[int] = encoding.ids
        return ids

    async def encode_async(self, text: str, *, add_special: bool = False) -> list[int]:
        """As :meth:`encode`, in a thread when the text is long, so that the event loop goes on."""
        if len(text) <= INLINE_CHARS:
            return self.encode(text, add_special=add_special)
        return await asyncio.to_thread(self.encode, text, add_special=add_special)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of *ids*; characters cut at either end become U+FFFD, unknown ids nothing."""
        known = [identity for identity in ids if 0 <= identity <= 0xFFFF_FFFF]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special)
        return text

    def token_bytes(self, identity: int) -> bytes:
        """The bytes that a token stands for; a part of a character where the vocabulary cuts one,
        and nothing for control tokens."""
        token: str | None = self._backend.id_to_token(identity)
        if token is None or token in self.special_ids:
            return b""
        if self._is_byte_level and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if _BYTE_TOKEN.fullmatch(token):  # as sentencepiece spells a byte
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    def token_id(self, token: str) -> int | None:
        """The id of the token that reads *token*, or None."""
        identity: int | None = self._backend.token_to_id(token)
        return identity


def prompt_hash(ids: Sequence[int]) -> str:
    """32 hex digits that equal prompts share, on every host and in every version."""
    words = array("I", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return hashlib.blake2b(words.tobytes(), digest_size=16).hexdigest()
