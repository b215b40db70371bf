"""Rendered prompts equal those of transformers' apply_chat_template, character by character."""

import json
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import msgspec
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from neuron.text.template import ChatTemplate
from protocol.errors import FleetError
from protocol.generate import Message, Role, Tool, ToolCall
from tests.neuron.text.models import make_model

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
RENDERED_AT = 1_767_139_199.5
"""A moment shortly before a new year."""

WEATHER = Tool(
    "weather",
    "Tells the weather in a „Stadt“ & <region>",
    msgspec.Raw(
        json.dumps(
            {
                "type": "object",
                "properties": {"town": {"type": "string"}, "days": {"enum": [1, 2.5, None]}},
                "required": ["town"],
            }
        ).encode()
    ),
)
CLOCK = Tool("clock")

USER = Message(Role.USER, "Wie spät ist es?  ")
ANSWER = Message(Role.ASSISTANT, "\n Zehn. 🕙", reasoning="They ask\nfor the time.")


def calling(*calls: ToolCall, content: str = "") -> Message:
    return Message(Role.ASSISTANT, content, reasoning="A tool knows.", tool_calls=calls)


CONVERSATIONS: dict[str, tuple[tuple[Message, ...], tuple[Tool, ...]]] = {
    "one question": ((USER,), ()),
    "system": ((Message(Role.SYSTEM, "Be <brief> & 'kind'."), USER), ()),
    "skipped system": ((Message(Role.SYSTEM, "skip"), USER), ()),
    "turns": ((Message(Role.SYSTEM, " Sei nett. "), USER, ANSWER, USER, ANSWER, USER), ()),
    "empty content": ((USER, Message(Role.ASSISTANT), USER), ()),
    "thoughts in content": (
        (USER, Message(Role.ASSISTANT, "<think>\nhm\n</think>\n\nTen."), USER),
        (),
    ),
    "tools": ((USER,), (WEATHER, CLOCK)),
    "tools and system": ((Message(Role.SYSTEM, "日本語で"), USER, ANSWER, USER), (WEATHER,)),
    "one call": (
        (
            USER,
            calling(ToolCall("call00001", "weather", '{"town": "Köln", "days": [1, 2.50, null]}')),
            Message(Role.TOOL, 'sunny "and" <warm> ☀', tool_call_id="call00001"),
        ),
        (WEATHER,),
    ),
    "calls": (
        (
            USER,
            calling(
                ToolCall("call00001", "weather", '{"town": {"name": "Z\\u00fcrich"}, "a": true}'),
                ToolCall("call00002", "clock", ""),
                ToolCall("call00003", "clock", "not JSON"),
                content="Let me look.",
            ),
            Message(Role.TOOL, "rain", tool_call_id="call00001"),
            Message(Role.TOOL, "10:00", tool_call_id="call00002"),
            Message(Role.TOOL, "", tool_call_id="call00003"),
            ANSWER,
            Message(Role.USER, "Danke 🇩🇪\u2028e\u0301"),
        ),
        (WEATHER, CLOCK),
    ),
}
OPTIONS: tuple[dict[str, bool | int | float | str | None], ...] = (
    {},
    {"enable_thinking": False, "style": "große"},
    {"date_string": "1 Apr 2025", "bos_token": "<other>", "enable_thinking": True},
)


REFUSED = {("calls", "headers")}
"""Where a template raises an exception; everywhere else text is compared."""


class FixedDatetime(datetime):
    """The oracle's clock."""

    @classmethod
    def now(cls, tz: object = None) -> "FixedDatetime":
        moment = datetime.fromtimestamp(RENDERED_AT, UTC)
        return cls(*moment.timetuple()[:6])


def as_openai(message: Message) -> dict[str, object]:
    """What a program that uses transformers would write by hand."""
    shown: dict[str, object] = {"role": str(message.role), "content": message.content}
    if message.reasoning:
        shown["reasoning_content"] = message.reasoning
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.loads(call.arguments) if call.arguments[:1] == "{" else {},
                },
            }
            for call in message.tool_calls
        ]
    return shown


def as_schema(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "parameters": json.loads(bytes(tool.parameters))}
    if tool.description:
        function = {"name": tool.name, "description": tool.description} | function
    return {"type": "function", "function": function}


@pytest.mark.parametrize("source", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_rendering_equals_transformers(
    source: Path, conversation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", FixedDatetime)
    folder = make_model(tmp_path, template=source.read_text())
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    template = ChatTemplate.load(folder)
    messages, tools = CONVERSATIONS[conversation]
    as_dicts = [as_openai(message) for message in messages]
    schemas = [as_schema(tool) for tool in tools] or None

    def expected(options: dict[str, bool | int | float | str | None]) -> str:
        text: str = oracle.apply_chat_template(
            as_dicts, tools=schemas, add_generation_prompt=True, tokenize=False, **options
        )
        return text

    for options in OPTIONS:
        if (conversation, source.stem) in REFUSED:
            with pytest.raises(jinja2.TemplateError) as refusal:
                expected(options)
            with pytest.raises(FleetError, match="cannot take this conversation") as caught:
                template.render(messages, tools, options, rendered_at=RENDERED_AT)
            assert str(refusal.value) in str(caught.value)
        else:
            rendered = template.render(messages, tools, options, rendered_at=RENDERED_AT)
            assert rendered == expected(options)


@pytest.mark.parametrize("with_tools", [False, True])
def test_named_templates_are_chosen_as_in_transformers(tmp_path: Path, with_tools: bool) -> None:
    named = [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
    ]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": named}
    only_config = make_model(tmp_path / "config", tokenizer_config=config)
    with_file = make_model(tmp_path / "file", tokenizer_config=config, template="file")
    more = make_model(tmp_path / "more", tokenizer_config=config, template="file")
    (more / "additional_chat_templates").mkdir()
    (more / "additional_chat_templates" / "tool_use.jinja").write_text("more {{ bos_token }}.")
    tools = (CLOCK,) if with_tools else ()
    for folder in (only_config, with_file, more):
        oracle = PreTrainedTokenizerFast.from_pretrained(folder)
        expected = oracle.apply_chat_template(
            [as_openai(USER)],
            tools=[as_schema(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        template = ChatTemplate.load(folder)
        assert template.render((USER,), tools, {}, rendered_at=0) == expected


def test_special_tokens_equal_those_of_transformers(tmp_path: Path) -> None:
    names = ["bos_token", "eos_token", "unk_token", "pad_token", "tone_token", "image_token"]
    source = "|".join(f"{{{{ {name} }}}}" for name in names)
    legacy: dict[str, object] = {"bos_token": "<|pad|>"}
    legacy["unk_token"] = {"__type": "AddedToken", "content": "<|im_start|>"}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>"}
    folders = [
        make_model(tmp_path / "plain", template=source),
        make_model(
            tmp_path / "legacy",
            template=source,
            tokenizer_config=plain,
            special_tokens_map=legacy,
        ),
        make_model(
            tmp_path / "named",
            template=source,
            tokenizer_config=plain
            | {"extra_special_tokens": {"image_token": "<|pad|>"}, "added_tokens_decoder": {}},
            special_tokens_map=legacy,
        ),
    ]
    for folder in folders:
        oracle = PreTrainedTokenizerFast.from_pretrained(folder)
        expected = oracle.apply_chat_template([as_openai(USER)], tokenize=False)
        rendered = ChatTemplate.load(folder).render((USER,), (), {}, rendered_at=0)
        assert rendered == expected
