"""Chat templates: turn a conversation into the prompt text that a model was trained on.

Owns where a model keeps its templates and what a template sees. The results equal those of
transformers' ``apply_chat_template``, which the tests prove, with one deliberate difference:
``strftime_now`` returns a given time in UTC instead of the host's own time, because every host that
continues a stream must render the same prompt. Knows nothing about tokens.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import msgspec

from neuron.text.files import broken, read_config
from neuron.text.sandbox import BUDGET, Budget, Clock, ConversationRefused, TemplateEnvironment
from neuron.text.tool_calls.call_style import CallStyle, style_of
from protocol.errors import ErrorCode, FleetError
from protocol.generate import Message, Tool
from protocol.runtime.bounded_files import read_bounded

TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES_DIR = "additional_chat_templates"
TOKENIZER_CONFIG = "tokenizer_config.json"
LEGACY_TOKENS = "special_tokens_map.json"

MAX_TEMPLATE_BYTES = 4 << 20
"""Limit on a template's file; real ones have 20 KiB."""

DEFAULT = "default"
TOOL_USE = "tool_use"
THINK_OPEN = "<think>"

_MAX_REASON_CHARS = 600
_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}", re.ASCII)
_CUT = "\x02cut here\x03"
"""Marks the end of a message that is to be continued. Clients cannot send control characters that a
template would treat differently."""


class _NamedTemplate(msgspec.Struct, frozen=True):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
    chat_template: str | list[_NamedTemplate] | dict[str, str] | None = None


class ChatTemplate:
    """The compiled chat templates of one model."""

    def __init__(
        self, sources: Mapping[str, str], special_tokens: Mapping[str, str], folder: Path
    ) -> None:
        """*sources* maps names to templates and must include ``default``. Use :meth:`load`.

        Raises :class:`FleetError` for a template that does not compile.
        """
        environment = TemplateEnvironment()
        self.call_style = style_of(sources.get(TOOL_USE) or sources.get(DEFAULT, ""))
        """How the model writes tool calls."""
        self.identity = repr((sorted(sources.items()), sorted(special_tokens.items())))
        """Equal for templates that render the same."""
        self._special_tokens = dict(special_tokens)
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in sources.items():
            try:
                tree = environment.parse_counted(source)
                self._templates[name] = environment.from_string(tree)
            except MemoryError:
                raise
            except Exception as error:  # Python's compiler refuses what is too deep or too large
                line = (
                    f"line {error.lineno}: "
                    if isinstance(error, jinja2.TemplateSyntaxError)
                    else ""
                )
                what = str(error) or type(error).__name__
                why = f"the template {name!r} is not valid Jinja ({line}{what})"
                raise broken(folder / TEMPLATE_FILE, why) from error

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate":
        """Loads the templates of the model in *folder*.

        Template files take precedence over the ``chat_template`` of tokenizer_config.json, which is
        then ignored. Raises :class:`FleetError` (INVALID_REQUEST) when there is no template or it
        cannot be used.
        """
        sources = _template_files(folder) or _configured_templates(folder)
        if DEFAULT not in sources:
            found = f"only {', '.join(sorted(sources))}" if sources else "none"
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"The model in {folder} cannot chat: it has no chat template ({TEMPLATE_FILE} or "
                f"'chat_template' in {TOKENIZER_CONFIG}; found {found}), so it is probably a base "
                f"model. Use its instruction-tuned version, or put a {TEMPLATE_FILE} into the "
                f"folder.",
                param="model",
            )
        return cls(sources, _special_tokens(folder), folder)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        options: Mapping[str, bool | int | float | str | None],
        *,
        rendered_at: float,
        continues_last: bool = False,
    ) -> str:
        """Renders the prompt up to where the model's answer begins.

        With *continues_last*, renders up to the end of the last message's content, which the answer
        then continues. *options* are extra variables of the template; *rendered_at* is the Unix
        time that ``strftime_now`` returns. Raises :class:`FleetError` (INVALID_REQUEST) when the
        template refuses the conversation, fails on it or exceeds its budget.
        """
        _check_options(options)
        template = self._templates[DEFAULT]
        if tools:
            template = self._templates.get(TOOL_USE, template)
        budget = Budget()
        shown = [_message(self._with_own_ids(message)) for message in messages]
        if continues_last:
            if not shown:
                raise _unusable("there is no message to continue", "messages")
            shown[-1]["content"] = f"{messages[-1].content}{_CUT}"
        variables = {
            **self._special_tokens,
            "documents": None,
            **options,
            "messages": shown,
            "tools": [_tool(tool) for tool in tools] or None,
            "add_generation_prompt": not continues_last,
            "strftime_now": _clock(rendered_at).strftime_now,
            BUDGET: budget,
        }
        try:
            text = budget.bounded(template.generate(variables))
        except Exception as error:  # a template is the model's program: it may raise anything
            raise _render_error(error) from error
        return _cut_off(text) if continues_last else text

    def _with_own_ids(self, message: Message) -> Message:
        """Rewrites call ids for Mistral's templates, which only accept nine letters and digits.

        The ids that clients send back are ours or another service's.
        """
        if self.call_style is not CallStyle.MISTRAL:
            return message
        calls = (
            msgspec.structs.replace(call, id=_mistral_id(call.id)) for call in message.tool_calls
        )
        return msgspec.structs.replace(
            message,
            tool_calls=tuple(calls),
            tool_call_id=message.tool_call_id and _mistral_id(message.tool_call_id),
        )


def _mistral_id(call_id: str) -> str:
    """Maps *call_id* to nine characters, the same in every prompt."""
    if _MISTRAL_ID.fullmatch(call_id):
        return call_id
    return hashlib.blake2b(call_id.encode(), digest_size=8).hexdigest()[:9]


def _cut_off(text: str) -> str:
    """Returns the text before the mark; after it, the template has closed the message."""
    before, mark, _ = text.rpartition(_CUT)
    if not mark:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            "The last message cannot be continued, because the model's chat template does not show "
            "it. End the conversation with a user's message.",
            param="messages",
        )
    return before


def opens_thinking(rendered: str) -> bool:
    """Whether the model's answer begins inside ``<think>``, opened by the prompt itself.

    Only a tag at the end of the prompt counts: one further up was written by somebody in the
    conversation, or belongs to an earlier turn.
    """
    return rendered.rstrip().endswith(THINK_OPEN)


def _template_files(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in sorted((folder / MORE_TEMPLATES_DIR).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).is_file():
        files.setdefault(DEFAULT, folder / TEMPLATE_FILE)
    sources = {}
    for name, path in files.items():
        try:
            sources[name] = read_bounded(path, MAX_TEMPLATE_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise broken(path, f"the text cannot be read ({error})") from error
    return sources


def _configured_templates(folder: Path) -> dict[str, str]:
    config = read_config(folder / TOKENIZER_CONFIG, _TokenizerConfig)
    match config.chat_template if config else None:
        case str() as source:
            return {DEFAULT: source}
        case list() as named:
            return {entry.name: entry.template for entry in named}
        case dict() as by_name:
            return by_name
        case _:
            return {}


def _special_tokens(folder: Path) -> dict[str, str]:
    """The texts of special tokens by name (``bos_token`` and so on)."""
    config = read_config(folder / TOKENIZER_CONFIG, dict[str, object]) or {}
    entries = dict(config)
    if "added_tokens_decoder" not in config:
        # without that key, this older file has the last word
        entries |= read_config(folder / LEGACY_TOKENS, dict[str, object]) or {}
    named = entries.pop("extra_special_tokens", None)
    if isinstance(named, dict):
        entries |= {str(name): token for name, token in named.items()}
        names = {str(name) for name in named}
    else:
        names = set()
    tokens = {}
    for name, entry in entries.items():
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and (name.endswith("_token") or name in names):
            tokens[name] = text
    return tokens


def _message(message: Message) -> dict[str, object]:
    """The message in the OpenAI form that templates expect; absent fields are absent keys."""
    shown: dict[str, object] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        shown["reasoning_content"] = message.reasoning
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _arguments(text: str) -> dict[str, object]:
    """JSON text as an object, because many templates iterate over the arguments.

    Text that is not an object becomes an empty one: the client only repeats what a model once
    wrote, and a conversation must not end because of that.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return {}


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    try:
        function["parameters"] = msgspec.json.decode(tool.parameters, type=object)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The parameters of the tool {tool.name!r} cannot be read as JSON ({error}). Send a "
            f"JSON schema object.",
            param="tools",
        ) from error
    return {"type": "function", "function": function}


def _clock(rendered_at: float) -> Clock:
    try:
        return Clock(rendered_at)
    except (ValueError, OverflowError, OSError):
        raise _unusable(f"{rendered_at} is no time", "rendered_at") from None


def _unusable(why: str, field: str) -> FleetError:
    text = f"The conversation cannot be rendered: {why}. Send another one."
    return FleetError(ErrorCode.INVALID_REQUEST, text, param=field)


def _check_options(options: Mapping[str, bool | int | float | str | None]) -> None:
    fixed = {"messages", "tools", "strftime_now", "raise_exception", BUDGET} & options.keys()
    if options.get("add_generation_prompt", True) is not True:
        fixed.add("add_generation_prompt")
    if fixed:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The template options cannot set {', '.join(sorted(fixed))}: other fields of the "
            "request set them. Leave them out of the options.",
            param="chat_template_kwargs",
        )


def _render_error(error: Exception) -> FleetError:
    if isinstance(error, ConversationRefused):
        why = f"its chat template says: {str(error).strip()}"
    else:
        line = _template_line(error)
        place = f" at line {line}" if line else ""
        what = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            what = "it needed more memory than one request may take"
        why = f"its chat template failed{place}: {what}"
    return FleetError(
        ErrorCode.INVALID_REQUEST,
        f"The model cannot take this conversation: {why[:_MAX_REASON_CHARS].rstrip('.')}. "
        f"Change the messages, tools or template options accordingly.",
        param="messages",
    )


def _template_line(error: Exception) -> int:
    """The template line that raised, or 0; Jinja writes it into the traceback."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
