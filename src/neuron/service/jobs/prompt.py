"""Turns a job's request into prompt tokens and resolved sampling parameters.

Uses the chat template, the tokenizer and the model's own defaults. A request that is impossible for
this model is refused here, before the engine sees it.
"""

from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from neuron.ipc.messages import Ready, SamplingParams
from neuron.text.generation_defaults import GenerationDefaults
from neuron.text.template import ChatTemplate, opens_thinking
from neuron.text.tokenizer import ParsedFiles, Tokenizer, prompt_hash
from neuron.text.tool_calls.call_style import CallStyle
from protocol.catalogue import CALL_STYLES
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest, Role, Sampling
from protocol.job import Job

THINKING_ENDS = "\n</think>\n\n"
"""Ends the thinking that a prompt opened, when the answer must be a tool call."""


class Rendering(NamedTuple):
    """A request's prompt, before it is checked against the context limit."""

    text: str
    tokens: list[int]
    opens_thinking: bool = False
    """Whether the prompt itself opened ``<think>``."""
    is_raw: bool = False
    """Whether no template made the prompt; the answer is then plain text."""
    begun: str = ""
    """End of the text that already belongs to the answer: the beginning of a forced tool call."""


class Prompt(NamedTuple):
    """A prompt and its sampling parameters, ready for the engine."""

    rendering: Rendering
    hash: str
    sample: SamplingParams

    @property
    def tokens(self) -> list[int]:
        """The prompt's token ids."""
        return self.rendering.tokens


class Prompter:
    """Prepares the jobs of one model."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        defaults: GenerationDefaults,
        call_style: CallStyle,
    ) -> None:
        self._template = template
        self.call_style = call_style
        self.tokenizer = tokenizer
        self._defaults = defaults

    @classmethod
    def load(cls, folder: Path, call_style: str = "auto", files: ParsedFiles | None = None) -> Self:
        """Reads a model folder. Raises ``FleetError`` that names the file at fault.

        *call_style* comes from a profile; one that only newer versions know counts as ``auto``.
        *files* have parsed tokenizers that may be the same.
        """
        template = ChatTemplate.load(folder)
        named = call_style if call_style in CALL_STYLES else template.call_style
        tokenizer = Tokenizer.load(folder, files)
        return cls(template, tokenizer, GenerationDefaults.load(folder), CallStyle(named))

    async def prepare(self, job: Job, ready: Ready) -> Prompt:
        """Prepares a job. Raises ``FleetError`` when the template refuses it or it is too long."""
        request = job.request
        limit = ready.context_limit
        rendering = await self.render(request, job.rendered_at)
        if request.truncates and len(rendering.tokens) >= limit:
            rendering = await self._shortened(job, limit) or rendering
        tokens = rendering.tokens
        what = "messages" if request.prompt is None else "prompt"
        if len(tokens) >= limit:
            raise FleetError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. However, your {what} "
                f"resulted in {len(tokens)} tokens. Please reduce the length of the {what}.",
                param=what,
            )
        if not tokens:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"{what} contains no tokens, so there is nothing to continue. Send some text.",
                param=what,
            )
        sample = self._sample(request, job, limit - len(tokens), ready.vocab_size)
        return Prompt(rendering, prompt_hash(tokens), sample)

    async def _shortened(self, job: Job, limit: int) -> Rendering | None:
        """Renders the prompt without its oldest turns, leaving out as few as possible.

        Returns None when even the last turn alone is too long. A later attempt leaves out the same
        turns as the first.
        """
        request = job.request
        wanted = request.sampling.max_tokens or limit
        room = limit - min(wanted, limit // 4)
        messages = request.messages
        start = next((n for n, m in enumerate(messages) if m.role is not Role.SYSTEM), 0)
        turns = [n for n, m in enumerate(messages) if m.role is Role.USER and n > start]

        async def without(number: int) -> Rendering:
            kept = (*messages[:start], *messages[turns[number] :])
            shorter = msgspec.structs.replace(request, messages=kept)
            return await self.render(shorter, job.rendered_at)

        fewest, most = 0, len(turns)
        while fewest < most:
            middle = (fewest + most) // 2
            if len((await without(middle)).tokens) < room:
                most = middle
            else:
                fewest = middle + 1
        rendering: Rendering | None = None
        for number in range(fewest, len(turns)):
            rendering = await without(number)
            if job.prompt_hash in ("", prompt_hash(rendering.tokens)):
                break
        return rendering

    async def render(self, request: GenerateRequest, rendered_at: float) -> Rendering:
        """Renders a request's prompt as text and tokens; raises ``FleetError`` if impossible."""
        match request.prompt:
            case None:
                text = self._template.render(
                    request.messages,
                    request.tools,
                    request.template_options,
                    rendered_at=rendered_at,
                    continues_last=request.continues_last,
                )
                opens, begun = opens_thinking(text), ""
                if request.call is not None:
                    begun = self.call_style.beginning(request.call)
                    text += f"{THINKING_ENDS if opens else ''}{begun}"
                    opens = False
                tokens = await self.tokenizer.encode_async(text)
                return Rendering(text, tokens, opens, begun=begun)
            case str(text):
                tokens = await self.tokenizer.encode_async(text, add_special=request.add_special)
                return Rendering(text, tokens, is_raw=True)
            case ids:
                self._check_tokens(ids, self.tokenizer.vocab_size, "prompt")
                return Rendering(self.tokenizer.decode(ids), list(ids), is_raw=True)

    @staticmethod
    def _check_tokens(tokens: tuple[int, ...], vocab_size: int, field: str) -> None:
        foreign = [token for token in tokens if not 0 <= token < vocab_size]
        if foreign:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"{field}: {foreign[0]} is not a token id of this model, which has {vocab_size} "
                f"tokens. Use ids from 0 to {vocab_size - 1}.",
                param=field,
            )

    def _sample(
        self, request: GenerateRequest, job: Job, room: int, vocab_size: int
    ) -> SamplingParams:
        """The request's values, else the model's, else the usual defaults."""
        asked: Sampling = self._defaults.fill(request.sampling)
        self._check_tokens(asked.stop_token_ids, vocab_size, "stop_token_ids")
        self._check_tokens(asked.allowed_token_ids, vocab_size, "allowed_token_ids")
        biased = tuple(token for token, _ in asked.logit_bias)
        self._check_tokens(biased, vocab_size, "logit_bias")
        end_tokens = () if asked.ignore_eos else tuple(sorted(self.tokenizer.end_ids))
        max_tokens = min(room if asked.max_tokens is None else max(asked.max_tokens, 1), room)
        return SamplingParams(
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
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            repetition_penalty=asked.repetition_penalty or 1.0,
            logit_bias=asked.logit_bias,
            allowed_tokens=asked.allowed_token_ids or None,
            logprobs=asked.logprobs,
            prompt_logprobs=asked.logprobs if request.echo else None,
        )
