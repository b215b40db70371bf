"""Turns an engine's output for one answer into the parts that its client gets.

One output may have much text, or the scores of a whole prompt. The methods that read it are
therefore generators, which also yield None wherever others should run.
"""

from collections.abc import Callable, Iterator, Sequence

from neuron.ipc.messages import Logprobs
from neuron.text.aligner import Aligner
from neuron.text.answer_splitter import MOST_AT_ONCE, AnswerSplitter
from neuron.text.joining import joined
from neuron.text.prompt import Prompt
from neuron.text.tool_calls.xml_calls import Schema
from neuron.text.vocabulary import ModelText
from protocol.frames import AnswerPart, Text
from protocol.generate import GenerateRequest, TokenLogprob, TokenLogprobs

SCORED_AT_ONCE = 256
"""Prompt tokens whose scores are converted together, each with those of 20 alternatives."""


class AnswerParts:
    """The parts of one answer; must be fed each of its tokens once, in order."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt: Prompt,
        text: ModelText,
        new_call_id: Callable[[], str],
    ) -> None:
        self._model_text = text
        self._request = request
        self._prompt = prompt
        self._aligner = Aligner() if request.sampling.logprobs is not None else None
        self._marks = text.marks
        self._splitter: AnswerSplitter | None = None
        if not prompt.rendering.is_raw:
            tools = {tool.name: Schema(bytes(tool.parameters)) for tool in request.tools}
            self._splitter = AnswerSplitter(
                starts_in_thinking=prompt.rendering.opens_thinking,
                tools=tools or None,
                new_call_id=new_call_id,
                style=text.call_style,
            )
            self._splitter.feed(prompt.rendering.begun)

    @property
    def in_reasoning(self) -> bool:
        """Whether the text fed last is thinking."""
        return self._splitter is not None and self._splitter.in_reasoning

    @property
    def calls(self) -> int:
        """Number of tool calls so far."""
        return self._splitter.calls if self._splitter else 0

    @property
    def is_enough(self) -> bool:
        """Whether the single call that was requested is complete."""
        return self._request.one_call and bool(self._splitter and self._splitter.ended_calls)

    def echo(self, scores: Sequence[Logprobs] | None) -> Iterator[tuple[AnswerPart, ...] | None]:
        """Yields the prompt's text, with which the answer begins if that was requested."""
        if not self._request.echo:
            return
        if self._request.sampling.logprobs is None:
            yield (Text(self._prompt.rendering.text),)
            return
        first, *others = self._prompt.tokens
        entries = [TokenLogprobs(self._model_text.token_bytes(first), None)]
        for number, (token, score) in enumerate(zip(others, scores or (), strict=False), 1):
            entries.append(self._scored(token, score))
            if number % SCORED_AT_ONCE == 0:
                yield None
        yield (Text(self._prompt.rendering.text, tuple(entries)),)

    def feed(
        self, tokens: Sequence[int], text: str, scores: Sequence[Logprobs] = (), stop_text: str = ""
    ) -> Iterator[tuple[AnswerPart, ...] | None]:
        """Takes new tokens, the text that became certain with them, and the stop text if any."""
        text += "".join(self._marks.get(token, "") for token in tokens)
        if self._request.sampling.include_stop:
            text += stop_text
        parts: tuple[AnswerPart, ...]
        if self._splitter is None:
            parts = (Text(text),) if text else ()
        else:
            found: list[AnswerPart] = []
            for start in range(0, len(text), MOST_AT_ONCE):
                if start:
                    yield None
                found += self._splitter.feed(text[start : start + MOST_AT_ONCE])
            parts = joined(found)
        if self._aligner is not None:
            self._aligner.add(
                self._scored(token, score) for token, score in zip(tokens, scores, strict=False)
            )
            parts = self._aligner.give(parts)
        yield parts

    def finish(self) -> tuple[AnswerPart, ...]:
        """Ends the answer; returns what was held back."""
        parts = self._splitter.finish() if self._splitter else ()
        return self._aligner.give(parts) if self._aligner else parts

    def _scored(self, token: int, score: Logprobs) -> TokenLogprobs:
        top = tuple(
            TokenLogprob(self._model_text.token_bytes(other), value) for other, value in score.top
        )
        return TokenLogprobs(self._model_text.token_bytes(token), score.token, top)
