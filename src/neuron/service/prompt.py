"""A job's request → prompt tokens and resolved sampling.

The chat template, the tokenizer and the model's own defaults live here; everything that makes a
request impossible for this model is said here, before the engine sees it.
"""

from pathlib import Path
from typing import NamedTuple, Self

from neuron.engine.messages import Ready, Sample
from neuron.text.generation import GenerationDefaults
from neuron.text.template import ChatTemplate, opens_thinking
from neuron.text.tokenizer import Tokenizer, prompt_hash
from protocol.errors import ErrorCode, FleetError
from protocol.generate import Sampling
from protocol.job import Job


class Prompt(NamedTuple):
    """A request, ready for the engine."""

    tokens: list[int]
    hash: str
    opens_thinking: bool
    """The prompt itself opened ``<think>``."""
    sample: Sample


class Prompter:
    """Prepares the jobs of one model."""

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, defaults: GenerationDefaults
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._defaults = defaults

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads a model folder; raises ``FleetError`` naming the file at fault."""
        return cls(
            ChatTemplate.load(folder), Tokenizer.load(folder), GenerationDefaults.load(folder)
        )

    async def prepare(self, job: Job, ready: Ready) -> Prompt:
        """Raises ``FleetError`` when the template refuses the conversation or it is too long."""
        request = job.request
        text = self._template.render(
            request.messages,
            request.tools,
            request.template_options,
            rendered_at=job.rendered_at,
        )
        tokens = await self._tokenizer.encode_async(text)
        limit = ready.context_limit
        if len(tokens) >= limit:
            raise FleetError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. However, your messages "
                f"resulted in {len(tokens)} tokens. Please reduce the length of the messages.",
                param="messages",
            )
        return Prompt(
            tokens,
            prompt_hash(tokens),
            opens_thinking(text),
            self._sample(request.sampling, job, limit - len(tokens), ready.vocab_size),
        )

    def _sample(self, asked: Sampling, job: Job, room: int, vocab_size: int) -> Sample:
        """The request's numbers, else the model's, else the field's usual ones."""
        asked = self._defaults.fill(asked)
        foreign = [token for token in asked.stop_token_ids if token >= vocab_size]
        if foreign:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"stop_token_ids: {foreign[0]} is not a token of this model, which has "
                f"{vocab_size}.",
                param="stop_token_ids",
            )
        end_tokens = () if asked.ignore_eos else tuple(sorted(self._tokenizer.end_ids))
        max_tokens = min(asked.max_tokens or room, room)
        return Sample(
            max_tokens=max_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=0 if asked.top_k is None else asked.top_k,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            min_p=0.0 if asked.min_p is None else asked.min_p,
            seed=job.seed,
            choice=job.choice,
            min_tokens=min(asked.min_tokens, max_tokens),
            stop=asked.stop,
            end_tokens=(*end_tokens, *asked.stop_token_ids),
        )
