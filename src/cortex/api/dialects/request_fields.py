"""Decodes and refuses the fields that the dialects have in common. Pure.

Unknown fields are ignored, because clients send many. Known fields of a wrong type are refused by
name, and what would silently change the answer is refused rather than ignored.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from protocol.errors import ErrorCode, FleetError
from protocol.generate import Message, Sampling, Tool
from protocol.job import Priority
from protocol.names import InvalidName, check_model_id
from protocol.runtime.validation_errors import split_error

T = TypeVar("T")

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Limit = Annotated[int, Meta(ge=1)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]

MAX_STOPS = 16
MAX_TOOLS = 2_048
MAX_BIASES = 1024
_PRIORITIES = {"priority": Priority.HIGH, "flex": Priority.LOW}
_FIXED_OPTIONS = ("messages", "tools")


class StreamOptions(Struct, frozen=True):
    """Options of a streaming answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Sends token counts with every chunk."""


def empty() -> msgspec.Raw:
    """Returns the schema of a tool without arguments."""
    return msgspec.Raw(b"{}")


CONSTRAINTS = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
"""vLLM's names for the fields that constrain an answer."""


class SamplingFields(Struct, frozen=True, kw_only=True):
    """The sampling fields that OpenAI's endpoints have in common, with vLLM's extensions. Null
    always means the model's default."""

    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Fraction | None = None
    seed: Integer | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    # These are refused, because ignoring them would change the answer.
    bad_words: list[str] | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None


def invalid(message: str, param: str) -> FleetError:
    """Makes the error for a field at fault."""
    return FleetError(ErrorCode.INVALID_REQUEST, message, param=param)


def read(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Decodes a body; raises ``FleetError(INVALID_REQUEST)`` with the path of the field at
    fault."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(*_explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", "") from None


def _explain(text: str) -> tuple[str, str]:
    """Puts the path in front of msgspec's sentence: ``messages[0].role: Invalid enum value …``."""
    problem, path = split_error(text)
    field = re.search(r"missing required field `(\w+)`", problem)
    param = ".".join(filter(None, (path, field[1] if field else "")))
    return (f"{param}: {problem}." if path else f"{problem}."), param


def checked_model(model: str) -> str:
    """Returns *model* if it can be a model's name; raises otherwise."""
    try:
        return check_model_id(model)
    except InvalidName as error:
        raise invalid(f"model: {error}.", "model") from None


def priority_of(service_tier: str | None) -> Priority:
    """Maps a service tier to a priority: ``priority`` goes first, ``flex`` last, every other tier
    is normal."""
    return _PRIORITIES.get(service_tier or "", Priority.NORMAL)


def sampling_of(
    asked: SamplingFields, *, max_tokens: int | None, logprobs: int | None = None
) -> Sampling:
    """Converts the fields to their neutral form."""
    if asked.bad_words:
        raise invalid(
            "bad_words: not supported; put the tokens into logit_bias, with -100 each.", "bad_words"
        )
    for field in CONSTRAINTS:
        if getattr(asked, field) is not None:
            raise invalid(
                f"{field}: answers cannot be constrained by this version of the gateway. Leave the "
                "field out, and describe the form in a message.",
                field,
            )
    return Sampling(
        temperature=asked.temperature,
        top_k=None if asked.top_k is None else max(asked.top_k, 0),
        top_p=asked.top_p,
        min_p=asked.min_p,
        max_tokens=bounded(max_tokens),
        min_tokens=asked.min_tokens or 0,
        stop=stops_of(asked.stop, "stop"),
        include_stop=bool(asked.include_stop_str_in_output),
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=_biases(asked.logit_bias or {}),
        allowed_token_ids=tuple(asked.allowed_token_ids or ()),
        logprobs=logprobs,
    )


def stops_of(stop: str | list[str] | None, field: str) -> tuple[str, ...]:
    """Lists the stop texts, without empty ones."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise invalid(f"{field}: {len(stops)} texts; at most {MAX_STOPS} are allowed.", field)
    return tuple(text for text in stops if text)


def bounded(max_tokens: int | None) -> int | None:
    """Bounds a limit to 64 bits for the bus; clients write absurd ones, which the neuron clamps to
    its context."""
    return None if max_tokens is None else min(max_tokens, 2**31 - 1)


def _biases(asked: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    if len(asked) > MAX_BIASES:
        raise invalid(
            f"logit_bias: {len(asked)} tokens; at most {MAX_BIASES} are allowed.", "logit_bias"
        )
    biases = []
    for token, bias in asked.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise invalid(f"logit_bias: {token[:40]!r} is not a token id.", "logit_bias")
        if not -100 <= bias <= 100:
            raise invalid(
                f"logit_bias.{token}: {bias} is outside the range from -100 to 100.",
                f"logit_bias.{token}",
            )
        biases.append((int(token), bias))
    return tuple(sorted(biases))


def check_count(*tools: Sequence[object] | None) -> None:
    """Refuses an absurd number of tools."""
    count = sum(len(some or ()) for some in tools)
    if count > MAX_TOOLS:
        raise invalid(f"tools: {count} tools; at most {MAX_TOOLS} are allowed.", "tools")


def tool_of(name: str, description: str | None, schema: msgspec.Raw, path: str) -> Tool:
    """Makes a tool from a function; its schema is passed through once it is known to be an
    object."""
    if not name:
        raise invalid(f"{path}: a tool needs a name.", path)
    try:
        found = msgspec.json.decode(schema, type=dict[str, object] | None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"{path}: not a JSON schema object: {error}.", path) from None
    return Tool(name, description or "", msgspec.Raw(b"{}") if found is None else schema)


def joined(turn: Message, more: Message, gap: str = "") -> Message:
    """Joins two turns of one speaker, with *gap* between their texts."""
    return msgspec.structs.replace(
        turn,
        content=gap.join(filter(None, (turn.content, more.content))),
        reasoning=turn.reasoning + more.reasoning,
        tool_calls=turn.tool_calls + more.tool_calls,
    )


def thinking_options(effort: str | None) -> dict[str, bool | int | float | str | None]:
    """Translates a ``reasoning_effort`` into options of chat templates."""
    if effort is None:
        return {}
    return {"enable_thinking": effort not in ("none", "minimal"), "reasoning_effort": effort}
