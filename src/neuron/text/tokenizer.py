"""A model's tokenizer: converts prompt text to token ids and back.

Owns tokenizer.json, read by the ``tokenizers`` library. Knows nothing about conversations
(``template``), nor about incremental decoding, which the engine does.
"""

import hashlib
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tokenizers

from neuron.text.byte_alphabet import BYTE_LEVEL_ALPHABET
from neuron.text.density import chars_per_token
from neuron.text.files import broken
from neuron.text.generation_defaults import end_token_ids
from protocol.errors import ErrorCode, FleetError
from protocol.runtime.bounded_files import read_bounded

TOKENIZER_FILE = "tokenizer.json"

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_LEVEL_ALPHABET)}

MAX_FILE_BYTES = 256 << 20
"""Limit on tokenizer.json; the largest that are in use have 35 MiB."""
MAX_TOKENS = 4 << 20
"""Limit on the size of a vocabulary; the largest that are in use have 262,144 tokens."""
MAX_TOKEN_CHARS = 16_384
"""Limit on the text of one token, as each step of an answer may make one. Real ones have up to a
few hundred characters."""


class Tokenizer:
    """Encodes and decodes text for one model. Thread-safe."""

    def __init__(
        self, backend: tokenizers.Tokenizer, end_ids: frozenset[int], identity: str = ""
    ) -> None:
        """Use :meth:`load` instead."""
        self._backend = backend
        self._is_byte_level = "ByteLevel" in str(backend.decoder)
        self.end_ids = end_ids
        """Token ids that end an answer."""
        self.identity = identity
        """Equal for tokenizers of equal files."""
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        """Number of tokens, added ones included."""
        self.last_id = max(vocabulary.values(), default=-1)
        """The highest token id."""
        self.longest_chars = max(map(len, vocabulary), default=0)
        """Characters of the longest token."""
        self.chars_per_token = chars_per_token(backend, vocabulary)
        """The most characters of a text that one token can stand for; None where unknown."""
        self.special_ids: Mapping[str, int] = MappingProxyType(
            {
                token.content: identity
                for identity, token in backend.get_added_tokens_decoder().items()
                if token.special
            }
        )
        """Ids of control tokens, which are not text of an answer, by their text."""

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Loads the tokenizer of the model in *folder*.

        Raises :class:`FleetError` (INVALID_REQUEST) when tokenizer.json is missing, broken, or
        beyond what is supported.
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
            content = read_bounded(path, MAX_FILE_BYTES)
            backend = tokenizers.Tokenizer.from_buffer(content)
        except MemoryError:
            raise
        except Exception as error:  # the library raises plain Exception for files it cannot parse
            raise broken(
                path, f"the tokenizers library cannot read the content ({error})"
            ) from error
        # Some files configure the fixed lengths of training batches.
        backend.no_truncation()
        backend.no_padding()
        identity = hashlib.blake2b(content, digest_size=16).hexdigest()
        tokenizer = cls(backend, end_token_ids(folder, backend.token_to_id), identity)
        tokenizer._check_size(path)
        return tokenizer

    def _check_size(self, path: Path) -> None:
        if self.last_id >= MAX_TOKENS:
            raise broken(path, f"the token id {self.last_id} is above the limit of {MAX_TOKENS}")
        if self.longest_chars > MAX_TOKEN_CHARS:
            raise broken(
                path,
                f"a token has {self.longest_chars} characters; the limit is {MAX_TOKEN_CHARS}",
            )

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a rendered prompt; recognizes special tokens in the text.

        Adds nothing, because the template has already written what belongs there. For a text that
        no template made, *add_special* adds the tokens with which the model's texts begin.
        """
        # the fast variant omits character offsets, which saves a third of the time
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special)
        ids: list[int] = encoding.ids
        return ids

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
