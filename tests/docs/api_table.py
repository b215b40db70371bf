"""Writes ``docs/api.md``: every parameter of every endpoint, and what becomes of it.

What is honoured is read from the code: the fields of the request types. Each of them names the
test that sees it at work. ``python -m tests.docs.api_table > docs/api.md`` writes the page.
"""

import sys
from typing import NamedTuple

import msgspec

from cortex.api.dialects.chat.types import ChatRequest
from cortex.api.dialects.completions.types import CompletionRequest
from cortex.api.dialects.messages.types import CountRequest, MessagesRequest
from cortex.api.dialects.request_fields import CONSTRAINTS
from cortex.api.dialects.responses.types import ResponsesRequest
from cortex.api.endpoints.tokenization import DetokenizeRequest, TokenizeRequest

PARAMETERS = "fleet/test_parameters.py"
DECODERS = "cortex/api/dialects/test_decoders.py"
SDKS = "fleet/test_sdks.py"
MESSAGES = "fleet/test_messages.py"
BAD_INPUT = "fleet/test_bad_input.py"


class Endpoint(NamedTuple):
    """One of them."""

    path: str
    about: str
    request: type[msgspec.Struct]
    ignored: tuple[str, ...] = ()
    """Accepted and without effect."""
    refused: tuple[tuple[str, str], ...] = ()
    """With the reason."""


_SAMPLING = {
    "temperature": ("0 is greedy", f"{PARAMETERS}::test_chance"),
    "top_p": ("", f"{PARAMETERS}::test_chance"),
    "top_k": ("-1 and 0 keep all", f"{PARAMETERS}::test_chance"),
    "min_p": ("", f"{PARAMETERS}::test_chance"),
    "seed": ("the same answer again, on any node", f"{PARAMETERS}::test_chance"),
    "stop": ("up to 16 texts; none of it is returned", f"{PARAMETERS}::test_ends"),
    "include_stop_str_in_output": ("it is returned", f"{PARAMETERS}::test_ends"),
    "stop_token_ids": ("", f"{PARAMETERS}::test_ends"),
    "min_tokens": ("", f"{PARAMETERS}::test_ends"),
    "ignore_eos": ("for benchmarks", f"{PARAMETERS}::test_ends"),
    "frequency_penalty": ("", f"{PARAMETERS}::test_biases_and_penalties"),
    "presence_penalty": ("", f"{DECODERS}::test_sampling_in_chat"),
    "repetition_penalty": ("over prompt and answer", f"{PARAMETERS}::test_biases_and_penalties"),
    "logit_bias": ("up to 1,024 tokens", f"{PARAMETERS}::test_biases_and_penalties"),
    "allowed_token_ids": ("", f"{PARAMETERS}::test_biases_and_penalties"),
}
_USUAL = {
    "model": (
        "an id or an alias; the answer repeats it",
        "fleet/test_catalogue.py::test_an_alias_is_served_and_the_answer_has_its_name",
    ),
    "stream": ("", "fleet/test_dialects.py::test_all_dialects_say_the_same"),
    "service_tier": (
        "`priority` goes first in the queue, `flex` last",
        "fleet/test_admission.py::test_a_tier_goes_before_or_after_what_waits",
    ),
}
_TOOLS = {
    "tools": (
        "functions; other types are skipped",
        "fleet/test_dialects.py::test_all_dialects_say_the_same",
    ),
    "tool_choice": (
        "all forms; a required call is begun for the model",
        f"{PARAMETERS}::test_a_call_can_be_required",
    ),
    "parallel_tool_calls": (
        "`false` ends the answer after its first call",
        f"{PARAMETERS}::test_one_call_is_enough_where_several_are_not_wanted",
    ),
}
_NOTES: dict[type[msgspec.Struct], dict[str, tuple[str, str]]] = {
    ChatRequest: {
        **_SAMPLING,
        **_USUAL,
        **_TOOLS,
        "messages": (
            "all roles; content as text, parts or null; earlier thinking under both of its names",
            f"{DECODERS}::test_messages_in_chat",
        ),
        "stream_options": (
            "`include_usage`, `continuous_usage_stats`",
            f"{PARAMETERS}::test_usage_with_every_chunk",
        ),
        "max_completion_tokens": ("clamped to what fits", f"{PARAMETERS}::test_ends"),
        "max_tokens": ("as `max_completion_tokens`, which wins", f"{PARAMETERS}::test_ends"),
        "n": ("1 to 128; each choice survives by itself", f"{PARAMETERS}::test_chance"),
        "logprobs": (
            "of the visible text's tokens",
            f"{PARAMETERS}::test_logprobs_are_those_of_the_content",
        ),
        "top_logprobs": ("0 to 20", f"{PARAMETERS}::test_logprobs_are_those_of_the_content"),
        "functions": (
            "as `tools`; then the answer has `function_call`",
            f"{DECODERS}::test_choices_of_tools_in_chat",
        ),
        "function_call": ("as `tool_choice`", f"{DECODERS}::test_choices_of_tools_in_chat"),
        "chat_template_kwargs": (
            "variables of the model's template",
            f"{PARAMETERS}::test_thinking_is_switched",
        ),
        "continue_final_message": (
            "the last message begins the answer",
            f"{PARAMETERS}::test_an_answer_can_be_continued",
        ),
        "reasoning_effort": (
            "`none` and `minimal` switch thinking off",
            f"{PARAMETERS}::test_thinking_is_switched",
        ),
        "include_reasoning": (
            "`false`: thinking is not shown",
            f"{PARAMETERS}::test_thinking_is_switched",
        ),
    },
    CompletionRequest: {
        **_SAMPLING,
        **_USUAL,
        "prompt": (
            "a text, tokens, or a list of them",
            f"{PARAMETERS}::test_prompts_as_text_and_as_tokens",
        ),
        "max_tokens": ("16 if absent; 0 with `echo`", f"{PARAMETERS}::test_prompts_can_be_scored"),
        "n": ("prompts × n ≤ 128", f"{DECODERS}::test_forms_of_prompts"),
        "best_of": ("only equal to `n`", f"{DECODERS}::test_what_completions_refuse"),
        "add_special_tokens": (
            "for a text: `false` omits the token that begins the model's texts",
            f"{DECODERS}::test_forms_of_prompts",
        ),
        "echo": ("", f"{PARAMETERS}::test_prompts_can_be_scored"),
        "logprobs": (
            "0 to 20; with `echo`, of the prompt too",
            f"{PARAMETERS}::test_prompts_can_be_scored",
        ),
        "stream_options": (
            "`include_usage`, `continuous_usage_stats`",
            f"{PARAMETERS}::test_usage_with_every_chunk",
        ),
    },
    ResponsesRequest: {
        **_USUAL,
        **_TOOLS,
        "input": ("a text or items", f"{DECODERS}::test_items_of_responses"),
        "instructions": ("", f"{DECODERS}::test_items_of_responses"),
        "max_output_tokens": (
            "clamped to what fits",
            "fleet/test_responses.py::test_limits",
        ),
        "temperature": _SAMPLING["temperature"],
        "top_p": _SAMPLING["top_p"],
        "presence_penalty": ("", "fleet/test_responses.py::test_penalties_reach_the_engine"),
        "frequency_penalty": ("", "fleet/test_responses.py::test_penalties_reach_the_engine"),
        "top_logprobs": ("0 to 20", "fleet/test_responses.py::test_logprobs"),
        "include": (
            "`message.output_text.logprobs`, `reasoning.encrypted_content`",
            f"{SDKS}::test_responses_with_the_openai_sdk",
        ),
        "max_tool_calls": (
            "1 ends the answer after its first call; else repeated",
            "fleet/test_responses.py::test_what_was_asked_is_repeated",
        ),
        "reasoning": ("`effort`", f"{PARAMETERS}::test_thinking_is_switched"),
        "metadata": ("repeated", "fleet/test_responses.py::test_what_was_asked_is_repeated"),
        "truncation": (
            "`auto`: an input that is too long loses its oldest turns",
            "fleet/test_responses.py::test_what_is_too_long_can_lose_its_oldest_turns",
        ),
        "safety_identifier": (
            "repeated",
            "fleet/test_responses.py::test_what_was_asked_is_repeated",
        ),
        "prompt_cache_key": (
            "repeated",
            "fleet/test_responses.py::test_what_was_asked_is_repeated",
        ),
        "user": ("repeated", "fleet/test_responses.py::test_what_was_asked_is_repeated"),
    },
    MessagesRequest: {
        **_USUAL,
        "messages": (
            "roles user, assistant and system; an assistant's message at the end is continued",
            f"{DECODERS}::test_the_system_says_something_in_the_middle",
        ),
        "system": (
            "text or blocks, without the billing header",
            f"{DECODERS}::test_what_changes_with_every_request_is_dropped",
        ),
        "max_tokens": ("clamped to what fits", f"{MESSAGES}::test_an_answer_in_both_forms"),
        "tools": ("those with an `input_schema`", f"{DECODERS}::test_tools_of_messages"),
        "tool_choice": ("all forms", f"{DECODERS}::test_tools_of_messages"),
        "thinking": ("absent = off; `display`", f"{MESSAGES}::test_an_answer_in_both_forms"),
        "output_config": (
            "`effort`; `format` is requested from the model in words",
            f"{DECODERS}::test_thinking",
        ),
        "output_format": (
            "as `output_config.format`",
            f"{MESSAGES}::test_what_claude_code_sends_is_tolerated",
        ),
        "stop_sequences": ("", f"{MESSAGES}::test_a_stop_text_is_named"),
        "temperature": _SAMPLING["temperature"],
        "top_p": _SAMPLING["top_p"],
        "top_k": _SAMPLING["top_k"],
    },
    CountRequest: dict.fromkeys(
        CountRequest.__struct_fields__,
        ("as in `/v1/messages`", f"{DECODERS}::test_counting_needs_no_limit_and_reads_the_same"),
    ),
    TokenizeRequest: {
        "model": _USUAL["model"],
        "prompt": ("or `messages`", f"{PARAMETERS}::test_prompts_as_text_and_as_tokens"),
        "messages": (
            "with everything else that `/v1/chat/completions` takes",
            f"{PARAMETERS}::test_prompts_as_text_and_as_tokens",
        ),
        "add_special_tokens": (
            "as in `/v1/completions`",
            f"{DECODERS}::test_forms_of_prompts",
        ),
        "return_token_strs": ("", f"{PARAMETERS}::test_prompts_as_text_and_as_tokens"),
    },
    DetokenizeRequest: {
        "model": _USUAL["model"],
        "tokens": ("", f"{PARAMETERS}::test_prompts_as_text_and_as_tokens"),
    },
}

_OPENAI_IGNORED = ("user", "safety_identifier", "prompt_cache_key", "metadata", "store")
_CONSTRAINED = "answers cannot be constrained yet"
_CONSTRAINTS = tuple((field, _CONSTRAINED) for field in CONSTRAINTS)
_STORED = "nothing is stored"
_VLLM_IGNORED = (
    "skip_special_tokens",
    "thinking_token_budget",
    "prompt_logprobs",
    "return_token_ids",
)
ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions",
        "OpenAI's Chat Completions, with vLLM's extensions.",
        ChatRequest,
        (
            *_OPENAI_IGNORED,
            "verbosity",
            "prediction",
            "moderation",
            "web_search_options",
            "audio",
            *_VLLM_IGNORED,
        ),
        (
            ("response_format", f"except `text`: {_CONSTRAINED}"),
            ("modalities", "except `text`"),
            ("bad_words", "use `logit_bias`"),
            *_CONSTRAINTS,
        ),
    ),
    Endpoint(
        "/v1/completions",
        "OpenAI's original Completions. No template touches the prompt; the answer is text.",
        CompletionRequest,
        ("user", "include_reasoning", *_VLLM_IGNORED),
        (
            ("suffix", "no model fills in the middle"),
            ("bad_words", "use `logit_bias`"),
            *_CONSTRAINTS,
        ),
    ),
    Endpoint(
        "/v1/responses",
        "OpenAI's Responses, without a store: each request carries the whole conversation.",
        ResponsesRequest,
        ("store", "client_metadata", "context_management", "stream_options"),
        (
            ("previous_response_id", _STORED),
            ("conversation", _STORED),
            ("prompt", _STORED),
            ("background", "answers are computed only while a client waits"),
            ("text", f"`format` except `text`: {_CONSTRAINED}"),
        ),
    ),
    Endpoint(
        "/v1/messages",
        "Anthropic's Messages.",
        MessagesRequest,
        ("metadata", "container", "context_management", "betas", "mcp_servers", "speed"),
    ),
    Endpoint(
        "/v1/messages/count_tokens", "How many tokens the prompt of a message has.", CountRequest
    ),
    Endpoint("/tokenize", "The tokens of a text or a conversation.", TokenizeRequest),
    Endpoint("/detokenize", "The text of tokens.", DetokenizeRequest),
)

HEAD = """\
# The API

<!-- Written by `python -m tests.docs.api_table > docs/api.md`; a test sees that it is current. -->

The base address is `http://127.0.0.1:31313`. Every endpoint also works without `/v1`, and those of
Anthropic's dialect also under `/anthropic`. Unknown fields are ignored; a known field of a wrong
type or range is a 400 that names it; null is the same as absent. Errors are written in the dialect
of their path ([statuses](errors.md)). How to set up clients is in [clients.md](clients.md); what
they receive, byte for byte, is in [transcripts](../tests/cortex/api/dialects/transcripts). A body
has at most 16 MiB, and its job must fit through the bus (8 MiB with `deploy/nats.conf`). Its
`Content-Type`, if there is one, is JSON (else 415). Web pages need their origin in `cors_origins`
([operating.md](operating.md#who-may-speak-to-a-gateway)).

`/apply-template`, `/v1/chat/completions/input_tokens` and `/v1/responses/input_tokens` take the
body of the request in question. `GET /v1/models` lists all models under all their names, in one
shape for both dialects. `GET /v1/streams/<id>` with `Last-Event-ID` resumes a stream in the dialect
in which it was begun ([reliability.md](reliability.md)). What operators can ask is in
[operating.md](operating.md).
"""


def honoured(endpoint: Endpoint) -> dict[str, tuple[str, str]]:
    """The parameters that have an effect, by name: a note, and the test."""
    refused = {name for name, _ in endpoint.refused}
    names = [
        field
        for field in endpoint.request.__struct_fields__
        if field not in endpoint.ignored and field not in refused
    ]
    notes = _NOTES[endpoint.request]
    return {name: notes[name] for name in sorted(names)}


def page() -> str:
    """The whole page."""
    out = [HEAD]
    for endpoint in ENDPOINTS:
        out.append(f"\n## POST {endpoint.path}\n\n{endpoint.about}\n\n")
        out.append("| parameter | | | seen by |\n|---|---|---|---|\n")
        for name, (note, test) in honoured(endpoint).items():
            out.append(f"| `{name}` | honoured | {note} | `{test}` |\n")
        for name, reason in sorted(endpoint.refused):
            out.append(f"| `{name}` | refused | {reason} | |\n")
        out += [f"| `{name}` | ignored | | |\n" for name in sorted(endpoint.ignored)]
    return "".join(out)


if __name__ == "__main__":
    sys.stdout.write(page())
