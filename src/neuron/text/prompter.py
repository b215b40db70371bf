"""Turns a job's request into prompt tokens and resolved sampling parameters.

Uses the chat template, the tokenizer and the model's own defaults. A request that is impossible for
this model is refused here, before the engine sees it; one that is certainly too long before it is
tokenized. Runs in the text process; everything that may take long is announced to a :class:`Watch`.
"""

import contextlib
import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, Self

from neuron.ipc.messages import SamplingParams
from neuron.ipc.text_messages import PromptJob
from neuron.text.generation_defaults import GenerationDefaults
from neuron.text.prompt import (
    MAX_ALLOWED,
    MAX_BIASES,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    RENDER_SECONDS,
    TEMPLATE,
    TOKENIZE_CHARS_PER_SECOND,
    TOKENIZE_SECONDS,
    TOKENIZER,
    WHOLE_CHARS_PER_TOKEN,
    Prompt,
    Rendering,
)
from neuron.text.template import TEMPLATE_FILE, ChatTemplate, opens_thinking
from neuron.text.tokenizer import TOKENIZER_FILE, Tokenizer, prompt_hash
from neuron.text.tool_calls.call_style import MARKS, CallStyle
from neuron.text.truncation import Conversation, shortest_cut
from neuron.text.vocabulary import ModelText, Vocabulary
from protocol.catalogue import CALL_STYLES
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest, Sampling

THINKING_ENDS = "\n</think>\n\n"
"""Ends the thinking that a prompt opened, when the answer must be a tool call."""


class Watch(Protocol):
    """Watches over work that a hostile model or request can make long."""

    def __call__(self, what: str, cpu_seconds: float, why: str) -> AbstractContextManager[None]:
        """Encloses the work of *what*, which may take *cpu_seconds* because of *why*."""
        ...


def unwatched(what: str, cpu_seconds: float, why: str) -> AbstractContextManager[None]:
    """A :class:`Watch` without limits, for whoever trusts model and request."""
    return contextlib.nullcontext()


class Prompter:
    """Prepares the jobs of one model."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        defaults: GenerationDefaults,
        call_style: CallStyle,
        watch: Watch = unwatched,
    ) -> None:
        self._template = template
        self.call_style = call_style
        self.tokenizer = tokenizer
        self._defaults = defaults
        self._watch = watch

    @classmethod
    def load(cls, folder: Path, call_style: str = "auto", watch: Watch = unwatched) -> Self:
        """Reads a model folder. Raises ``FleetError`` that names the file at fault.

        *call_style* comes from a profile; one that only newer versions know counts as ``auto``.
        """
        with watch(TEMPLATE_FILE, 0.0, ""):
            template = ChatTemplate.load(folder)
        named = call_style if call_style in CALL_STYLES else template.call_style
        with watch(TOKENIZER_FILE, 0.0, ""):
            tokenizer = Tokenizer.load(folder)
        defaults = GenerationDefaults.load(folder)
        return cls(template, tokenizer, defaults, CallStyle(named), watch)

    @property
    def identity(self) -> str:
        """Equal for prompters that give equal prompts."""
        tokenizer = self.tokenizer
        parts = (tokenizer.identity, sorted(tokenizer.end_ids), self._template.identity)
        text = repr((parts, self._defaults, self.call_style))
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()

    @property
    def marks(self) -> dict[int, str]:
        """See :class:`ModelText`."""
        ids = self.tokenizer.special_ids
        return {ids[mark]: mark for mark in MARKS if mark in ids}

    def vocabulary(self) -> Vocabulary:
        """The bytes of all tokens."""
        return Vocabulary.of(map(self.tokenizer.token_bytes, range(self.tokenizer.last_id + 1)))

    def model_text(self) -> ModelText:
        """How the model writes, with its vocabulary."""
        return ModelText(self.call_style, self.marks, self.vocabulary())

    def prepare(self, request: GenerateRequest, job: PromptJob) -> Prompt:
        """Prepares a job. Raises ``FleetError`` when the template refuses it or it is too long."""
        limit = job.context_limit
        rendering = self._fitting(request, job)
        tokens, what = rendering.tokens, _what(request)
        if len(tokens) >= limit:
            raise _too_long(limit, what, f"resulted in {len(tokens)} tokens")
        if not tokens:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"{what} contains no tokens, so there is nothing to continue. Send some text.",
                param=what,
            )
        sample = self._sample(request, job, limit - len(tokens))
        return Prompt(rendering, prompt_hash(tokens), sample)

    def _fitting(self, request: GenerateRequest, job: PromptJob) -> Rendering:
        """Renders a request, shortened if it must be and may be."""
        limit = job.context_limit
        if not request.truncates or request.prompt is not None:
            return self.render(request, job.rendered_at, limit)
        size = sum(len(message.content) for message in request.messages)
        is_hopeless = len(request.messages) > MAX_MESSAGES or size > limit * WHOLE_CHARS_PER_TOKEN
        whole = None if is_hopeless else self._rendering_or_none(request, job)
        if (
            whole is not None
            and len(whole.tokens) < limit
            and job.prompt_hash in ("", prompt_hash(whole.tokens))
        ):
            return whole
        wanted = request.sampling.max_tokens or limit
        room = limit - min(wanted, limit // 4)
        conversation = Conversation(request, MAX_MESSAGES)

        def attempt(number: int) -> Rendering | None:
            return self._rendering_or_none(conversation.without(number), job)

        found = shortest_cut(conversation, attempt, room, job.prompt_hash) or whole
        if found is None and len(conversation):
            raise _too_long(limit, "messages", "do not fit even if only the last turn is kept")
        return found or self.render(request, job.rendered_at, limit)

    def _rendering_or_none(self, request: GenerateRequest, job: PromptJob) -> Rendering | None:
        """The rendering; None when it is certainly too long."""
        try:
            return self.render(request, job.rendered_at, job.context_limit)
        except FleetError as error:
            if error.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED:
                return None
            raise

    def render(
        self, request: GenerateRequest, rendered_at: float, limit: int | None = None
    ) -> Rendering:
        """Renders a request's prompt as text and tokens. Raises ``FleetError`` if that is
        impossible, or if it certainly has more than *limit* tokens."""
        match request.prompt:
            case None:
                return self._render_messages(request, rendered_at, limit)
            case str(text):
                tokens = self._encode(text, "prompt", limit, add_special=request.add_special)
                return Rendering(text, tokens, is_raw=True)
            case ids:
                self._check_tokens(ids, self.tokenizer.vocab_size, "prompt")
                if limit is not None and len(ids) >= limit:
                    raise _too_long(limit, "prompt", f"resulted in {len(ids)} tokens")
                return Rendering(self._decode(ids), list(ids), is_raw=True)

    def _render_messages(
        self, request: GenerateRequest, rendered_at: float, limit: int | None
    ) -> Rendering:
        _check_count(len(request.messages), MAX_MESSAGES, "messages")
        _check_count(len(request.tools), MAX_TOOLS, "tools")
        with self._watch(TEMPLATE, RENDER_SECONDS, "one request"):
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
        return Rendering(text, self._encode(text, "messages", limit), opens, begun=begun)

    def _encode(
        self, text: str, what: str, limit: int | None, *, add_special: bool = False
    ) -> list[int]:
        chars, most = len(text), self.tokenizer.chars_per_token
        if limit is not None and most is not None and chars > limit * most:
            raise _too_long(
                limit,
                what,
                f"resulted in {chars:,} characters, which are at least {-(-chars // most)} tokens, "
                f"as no token stands for more than {most} characters",
            )
        seconds = TOKENIZE_SECONDS + chars / TOKENIZE_CHARS_PER_SECOND
        with self._watch(TOKENIZER, seconds, f"{chars:,} characters"):
            return self.tokenizer.encode(text, add_special=add_special)

    def _decode(self, ids: tuple[int, ...]) -> str:
        seconds = TOKENIZE_SECONDS + len(ids) / TOKENIZE_CHARS_PER_SECOND
        with self._watch(TOKENIZER, seconds, f"{len(ids):,} tokens"):
            return self.tokenizer.decode(ids)

    @staticmethod
    def _check_tokens(tokens: tuple[int, ...], vocab_size: int, field: str) -> None:
        foreign = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if foreign is not None:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"{field}: {foreign} is not a token id of this model, which has {vocab_size} "
                f"tokens. Use ids from 0 to {vocab_size - 1}.",
                param=field,
            )

    def _sample(self, request: GenerateRequest, job: PromptJob, room: int) -> SamplingParams:
        """The request's values, else the model's, else the usual defaults."""
        asked: Sampling = self._defaults.fill(request.sampling)
        vocab_size = job.vocab_size
        _check_count(len(asked.stop), MAX_STOPS, "stop texts", "stop")
        _check_count(len(asked.stop_token_ids), MAX_BIASES, "stop tokens", "stop_token_ids")
        _check_count(len(asked.logit_bias), MAX_BIASES, "biases", "logit_bias")
        _check_count(len(asked.allowed_token_ids), MAX_ALLOWED, "tokens", "allowed_token_ids")
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


def _what(request: GenerateRequest) -> str:
    return "messages" if request.prompt is None else "prompt"


def _too_long(limit: int, what: str, why: str) -> FleetError:
    return FleetError(
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        f"This model's maximum context length is {limit} tokens. However, your {what} {why}. "
        f"Please reduce the length of the {what}.",
        param=what,
    )


def _check_count(count: int, limit: int, what: str, param: str = "") -> None:
    if count > limit:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The request has {count:,} {what}; at most {limit:,} are taken. Send fewer {what}.",
            param=param or what,
        )
