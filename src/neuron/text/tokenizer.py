"""A model's tokenizer: converts prompt text to token ids and back.

Owns tokenizer.json, read by the ``tokenizers`` library, whose Rust code releases the GIL. Knows
nothing about conversations (``template``), nor about incremental decoding, which the engine does.
"""

import asyncio
import hashlib
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

import tokenizers

from neuron.text.files import broken
from neuron.text.generation_defaults import end_token_ids
from protocol.errors import ErrorCode, FleetError

TOKENIZER_FILE = "tokenizer.json"

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_characters() -> dict[str, int]:
    """The alphabet of byte-level vocabularies, from GPT-2.

    Printable bytes stand for themselves, the others for the characters from U+0100 on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }


_BYTE_OF = _byte_characters()

INLINE_CHARS = 2_048
"""Texts up to this length take less than a millisecond, so a thread does not pay off."""


class ParsedFile:
    """A tokenizer.json as the library holds it."""

    def __init__(self, backend: tokenizers.Tokenizer, identity: str, nbytes: int) -> None:
        self.backend = backend
        self.id = identity
        """Equal for equal contents."""
        self.nbytes = nbytes
        """Bytes of the file."""


class ParsedFiles:
    """Parses tokenizer.json files: each content once, for as long as somebody uses it."""

    def __init__(self) -> None:
        self._parsed: WeakValueDictionary[str, ParsedFile] = WeakValueDictionary()

    def parse(self, path: Path) -> ParsedFile:
        """Returns the content of *path*. Raises OSError, and Exception for what the library cannot
        parse, which raises nothing more specific."""
        content = path.read_bytes()
        identity = hashlib.blake2b(content, digest_size=16).hexdigest()
        parsed = self._parsed.get(identity)
        if parsed is None:
            backend = tokenizers.Tokenizer.from_buffer(content)
            # Some files configure the fixed lengths of training batches. Once, before it is shared:
            # changing it waits for whoever encodes with it, with Python's lock held.
            backend.no_truncation()
            backend.no_padding()
            parsed = self._parsed[identity] = ParsedFile(backend, identity, len(content))
        return parsed


class Tokenizer:
    """Encodes and decodes text for one model. Thread-safe."""

    def __init__(self, parsed: ParsedFile, end_ids: frozenset[int]) -> None:
        """Use :meth:`load` instead."""
        backend = parsed.backend
        self._parsed = parsed
        self._backend = backend
        self._is_byte_level = "ByteLevel" in str(backend.decoder)
        self.end_ids = end_ids
        """Token ids that end an answer."""
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        """Number of tokens, added ones included."""
        self.special_ids: Mapping[str, int] = MappingProxyType(
            {
                token.content: identity
                for identity, token in backend.get_added_tokens_decoder().items()
                if token.special
            }
        )
        """Ids of control tokens, which are not text of an answer, by their text."""

    @property
    def file_id(self) -> str:
        """Equal for tokenizers of equal files."""
        return self._parsed.id

    @property
    def file_bytes(self) -> int:
        """Size of its file."""
        return self._parsed.nbytes

    @classmethod
    def load(cls, folder: Path, files: ParsedFiles | None = None) -> "Tokenizer":
        """Loads the tokenizer of the model in *folder*, which others may have parsed by *files*.

        Raises :class:`FleetError` (INVALID_REQUEST) when tokenizer.json is missing or broken.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"The model in {folder} cannot be used: it has no {TOKENIZER_FILE}, and other "
                "tokenizer formats are not supported. Load its tokenizer with transformers' "
                f"AutoTokenizer and save it, which writes {TOKENIZER_FILE}.",
                param="model",
            )
        try:
            parsed = (files or ParsedFiles()).parse(path)
        except Exception as error:  # the library raises plain Exception for files it cannot parse
            raise broken(
                path, f"the tokenizers library cannot read the content ({error})"
            ) from error
        return cls(parsed, end_token_ids(folder, parsed.backend.token_to_id))

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a rendered prompt; recognizes special tokens in the text.

        Adds nothing, because the template has already written what belongs there. For a text that
        no template made, *add_special* adds the tokens with which the model's texts begin.
        """
        # the fast variant omits character offsets, which saves a third of the time
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special)
        ids: list[int] = encoding.ids
        return ids

    async def encode_async(self, text: str, *, add_special: bool = False) -> list[int]:
        """Like :meth:`encode`, in a thread when the text is long, to keep the event loop free."""
        if len(text) <= INLINE_CHARS:
            return self.encode(text, add_special=add_special)
        return await asyncio.to_thread(self.encode, text, add_special=add_special)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of *ids*; characters cut at either end become U+FFFD, unknown ids vanish."""
        known = [identity for identity in ids if 0 <= identity <= 0xFFFF_FFFF]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special)
        return text

    def token_bytes(self, identity: int) -> bytes:
        """The bytes of a token: possibly only part of a character; empty for control tokens."""
        token: str | None = self._backend.id_to_token(identity)
        if token is None or token in self.special_ids:
            return b""
        if self._is_byte_level and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if _BYTE_TOKEN.fullmatch(token):  # sentencepiece's spelling of a byte
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    def token_id(self, token: str) -> int | None:
        """The id of the token whose text is *token*, or None."""
        identity: int | None = self._backend.token_to_id(token)
        return identity


def prompt_hash(ids: Sequence[int]) -> str:
    """A hash of 32 hex digits: equal prompts have equal hashes on every host and version."""
    words = array("I", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return hashlib.blake2b(words.tobytes(), digest_size=16).hexdigest()
