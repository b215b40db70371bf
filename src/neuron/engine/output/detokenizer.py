"""Converts tokens to text, one at a time.

Owns incremental, UTF-8-safe decoding. Text is released once no stop text can reach it
(``stop_scanner.py``). Must not know models, sampling or scheduling.
"""

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from neuron.engine.output.stop_scanner import StopScanner

PRIME_TOKENS = 8
"""Prompt tokens that the decoder sees first, so that it keeps or drops the answer's first space as
when decoding the whole text."""
MOST_PENDING = 24
"""Most tokens without a complete character that are decoded together. Each new token decodes all of
them again, and a model can emit special tokens or broken bytes endlessly."""
CHARACTER_BYTES = 4


class Detokenizer:
    """The text of one answer, token by token."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._prime = prompt[-PRIME_TOKENS:]
        # If the prompt ends inside a character, its bytes would leak into the answer.
        if self._decode(self._prime).endswith("\ufffd"):
            self._prime = []
        self._stream = DecodeStream(ids=self._prime, skip_special_tokens=True)
        self._pending: list[int] = []  # tokens since the last complete character
        self._scanner = StopScanner(stops)

    def push(self, token: int) -> tuple[str, str | None]:
        """Takes the next token; returns what ``StopScanner.push`` returns."""
        self._pending.append(token)
        piece = self._stream.step(self._tokenizer, token)
        if piece is not None:
            self._prime, self._pending = self._pending[-PRIME_TOKENS:], []
            return self._scanner.push(piece)
        if len(self._pending) < MOST_PENDING:
            return "", None
        return self._scanner.push(self._settle())

    def flush(self) -> tuple[str, str | None]:
        """Returns the rest at the end of the answer; an unfinished character becomes U+FFFD."""
        text, stop = "", None
        if self._pending:
            rest = self._decode(self._pending)
            self._pending.clear()
            text, stop = self._scanner.push(rest)
        return (text, stop) if stop is not None else (text + self._scanner.flush(), None)

    def _settle(self) -> str:
        """Releases all pending tokens but the last few, which may still complete a character."""
        whole = self._decode(self._pending)
        for kept in range(CHARACTER_BYTES - 1, MOST_PENDING // 2):
            head, tail = self._pending[:-kept], self._pending[-kept:]
            text = self._decode(head)
            if text + self._decode(tail) == whole:  # the cut is not inside a broken character
                break
        if text:  # broken bytes, which must not be decoded with the next text
            self._prime = []
        self._stream = DecodeStream(ids=self._prime, skip_special_tokens=True)
        self._pending = tail
        again = [self._stream.step(self._tokenizer, token) for token in tail]
        if any(piece is not None for piece in again):
            self._pending = []
        return text + "".join(piece for piece in again if piece is not None)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
