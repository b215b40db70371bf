"""Tokens to text, one at a time, and the end of an answer at a stop text.

Owns the incremental, UTF-8-safe decoding and the hold-back: a text leaves only when it is certain
that it is not the beginning of a stop text. Must not know models, sampling or scheduling.
"""

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

PRIME_TOKENS = 8
"""Prompt tokens that the decoder sees first, so that the answer's first space is kept or dropped
as in the whole text."""


class StopScanner:
    """Finds the first stop text in a stream of pieces and holds back no more than it must.

    The stop that *ends* first wins, and among those that end together the one that starts first:
    the result is then the same however the text is cut into tokens.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """Takes more text; returns the text that is now certain, and the stop if one is reached.

        After a stop the certain text ends right before it, and nothing more may be pushed.
        """
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            start, stop = match
            self._held = ""
            return text[:start], stop
        keep = self._hold(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """The text held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _hold(self, text: str) -> int:
        """Length of the longest end of *text* that begins a stop text."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class Detokenizer:
    """The text of one answer, token by token."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        prime = prompt[-PRIME_TOKENS:]
        # A prompt that ends inside a character would leak its bytes into the answer.
        if tokenizer.decode(prime, skip_special_tokens=True).endswith("\ufffd"):
            prime = []
        self._stream = DecodeStream(ids=prime, skip_special_tokens=True)
        self._pending: list[int] = []  # tokens since the last whole character
        self._scanner = StopScanner(stops)

    def push(self, token: int) -> tuple[str, str | None]:
        """Takes the next token; returns as :meth:`StopScanner.push`."""
        self._pending.append(token)
        piece = self._stream.step(self._tokenizer, token)
        if piece is None:
            return "", None
        self._pending.clear()
        return self._scanner.push(piece)

    def flush(self) -> tuple[str, str | None]:
        """The rest at the end of the answer: an unfinished character becomes U+FFFD."""
        text, stop = "", None
        if self._pending:
            rest = self._tokenizer.decode(self._pending, skip_special_tokens=True)
            self._pending.clear()
            text, stop = self._scanner.push(rest)
        return (text, stop) if stop is not None else (text + self._scanner.flush(), None)
