"""The answer of one sequence as it grows: its text, and when it ends.

Owns the order in which the reasons to end are checked. Must not know scheduling or the model.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer

from neuron.engine.output.detokenizer import Detokenizer
from neuron.ipc.messages import SamplingParams
from protocol.generate import FinishReason


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The text and the end that one token added."""

    text: str = ""
    finish: FinishReason | None = None
    stop_text: str = ""


class AnswerText:
    """Follows one answer token by token."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: list[int], sample: SamplingParams, max_tokens: int
    ) -> None:
        """*max_tokens* is the smaller of what the request and the context allow."""
        self._detokenizer = Detokenizer(tokenizer, prompt, sample.stop)
        self._sample = sample
        self._left = max_tokens
        self._ends = frozenset(sample.end_tokens)
        self._replayed: list[str] = []

    def push(self, token: int) -> TextPiece:
        """Takes the next token. An end token adds no text; a stop text is cut off."""
        self._left -= 1
        if token in self._ends:
            return self._last("", FinishReason.STOP)
        text, stop = self._detokenizer.push(token)
        if stop is not None:
            return TextPiece(text, FinishReason.STOP, stop)
        if self._left <= 0:
            return self._last(text, FinishReason.LENGTH)
        return TextPiece(text)

    def replay(self, tokens: list[int]) -> TextPiece | None:
        """Takes an earlier attempt's tokens; returns the last piece if they ended the answer."""
        for token in tokens:
            piece = self.push(token)
            self._replayed.append(piece.text)
            if piece.finish is not None:
                return piece
        return None

    def take_replayed(self) -> list[str]:
        """Returns once what each replayed token added to the text."""
        replayed, self._replayed = self._replayed, []
        return replayed

    def _last(self, text: str, reason: FinishReason) -> TextPiece:
        rest, stop = self._detokenizer.flush()
        if stop is not None:
            return TextPiece(text + rest, FinishReason.STOP, stop)
        return TextPiece(text + rest, reason)
