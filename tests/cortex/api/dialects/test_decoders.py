"""Bodies of all dialects → neutral requests: what becomes of each field."""

import json
from typing import Any

import pytest

from cortex.api.dialects.base import Call
from cortex.api.dialects.chat.decode import decode_chat
from cortex.api.dialects.completions.decode import decode_completion
from cortex.api.dialects.messages.decode import decode_count, decode_messages
from cortex.api.dialects.responses.decode import decode_responses, sealed
from cortex.api.endpoints.tokenization import TokenizeRequest, prompt_of
from protocol.errors import FleetError
from protocol.generate import GenerateRequest, Message, Role, ToolCall
from protocol.job import Priority

USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "f", "description": "does it", "parameters": {"type": "object"}}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def chat(**fields: Any) -> GenerateRequest:
    return decode_chat(body(**{"messages": [USER], **fields})).choices[0].request


def messages(*turns: dict[str, Any], **fields: Any) -> GenerateRequest:
    call = decode_messages(body(**{"max_tokens": 9, "messages": turns or [USER], **fields}))
    return call.choices[0].request


def responses(*items: dict[str, Any], **fields: Any) -> GenerateRequest:
    return decode_responses(body(**{"input": items or "Hi", **fields})).choices[0].request


def roles(request: GenerateRequest) -> list[tuple[str, str]]:
    return [(str(message.role), message.content) for message in request.messages]


# -- Messages --------------------------------------------------------------------------------------


def turn(role: str, *blocks: dict[str, Any] | str) -> dict[str, Any]:
    content = [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]
    return {"role": role, "content": content}


def result(call: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": content, **more}


def test_the_system_says_something_in_the_middle() -> None:
    """It stays where it is: the beginning of the next prompt is this one."""
    first = [USER, turn("system", "9 left")]
    answer = turn("assistant", {"type": "thinking", "thinking": "hm", "signature": "x"}, "Yes.")
    later = [*first, answer, turn("user", "More?"), turn("system", "8 left")]
    one, two = messages(*first, system="Be brief."), messages(*later, system="Be brief.")
    assert two.messages[: len(one.messages)] == one.messages
    assert roles(one) == [
        ("system", "Be brief."),
        ("user", "Hi\n\n<system-reminder>\n9 left\n</system-reminder>"),
    ]
    assert two.messages[2] == Message(Role.ASSISTANT, "Yes.", reasoning="hm")
    after_tool = messages(
        USER,
        turn("assistant", {"type": "tool_use", "id": "t1", "name": "f", "input": {}}),
        turn("user", result("t1", "done")),
        turn("system", "7 left"),
    )
    assert roles(after_tool)[-1] == (
        "tool",
        "done\n\n<system-reminder>\n7 left\n</system-reminder>",
    )
    after_answer = messages(USER, turn("assistant", "Yes."), turn("system", "6 left"))
    assert roles(after_answer)[-1][0] == "user"


def test_what_changes_with_every_request_is_dropped() -> None:
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=abc"}
    blocks = [billing, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert roles(messages(system=blocks))[0] == ("system", "a\n\nb")
    assert roles(messages(system=[billing]))[0] == ("user", "Hi")


def test_results_of_tools_keep_their_order() -> None:
    request = messages(
        USER,
        turn(
            "assistant", "Look.", {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}
        ),
        turn(
            "user",
            "before",
            result("t1", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            result("t2", "no such file", is_error=True),
            result("t3", None),
            "after",
        ),
    )
    assert roles(request)[2:] == [
        ("user", "before"),
        ("tool", "a\nb"),
        ("tool", "Error: no such file"),
        ("tool", ""),
        ("user", "after"),
    ]
    call = ToolCall("t1", "f", '{"x": 1}')
    assert request.messages[1].tool_calls == (call,)
    assert request.messages[3].tool_call_id == "t1"


def test_turns_of_one_speaker_are_one_turn() -> None:
    request = messages(turn("user", "a"), turn("user", "b", "c"), turn("assistant", "d"))
    assert roles(request) == [("user", "a\n\nb\n\nc"), ("assistant", "d")]
    assert request.continues_last
    assert not messages(USER).continues_last


def test_blocks_that_only_anthropic_knows() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "data": "text"}}
    found = {
        "type": "search_result",
        "title": "S",
        "source": "u",
        "content": [{"type": "text", "text": "hit"}],
    }
    unknown = {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}}
    assert roles(messages(turn("user", document, found, unknown, "Hi"))) == [
        ("user", "T\n\ntext\n\nS u\nhit\n\nHi")
    ]
    for block, word in (
        ({"type": "image", "source": {"type": "url", "url": "x"}}, "images"),
        ({"type": "document", "source": {"type": "base64", "data": "x"}}, "plain text"),
    ):
        with pytest.raises(FleetError, match=word) as refused:
            messages(turn("user", block))
        assert refused.value.error.param == "messages[0].content[0]"
        with pytest.raises(FleetError, match=word):
            messages(USER, turn("user", result("t1", [block])))


@pytest.mark.parametrize(
    ("thinking", "thinks"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 5}, True),
    ],
)
def test_thinking(thinking: dict[str, Any] | None, thinks: bool) -> None:
    request = messages(thinking=thinking, output_config={"effort": "high"})
    assert request.template_options == {"enable_thinking": thinks, "reasoning_effort": "high"}


def test_tools_of_messages() -> None:
    own = {"name": "f", "input_schema": {"type": "object"}}
    custom = {"name": "g", "type": "custom", "input_schema": {"type": "object"}}
    server = {"name": "web_search", "type": "web_search_20250305"}
    request = messages(tools=[own, custom, server])
    assert [tool.name for tool in request.tools] == ["f", "g"]
    assert (request.call, request.one_call) == (None, False)
    for choice, call in (({"type": "any"}, ""), ({"type": "tool", "name": "g"}, "g")):
        assert messages(tools=[own, custom], tool_choice=choice).call == call
    auto = {"type": "auto", "disable_parallel_tool_use": True}
    assert messages(tools=[own], tool_choice=auto).one_call
    assert messages(tools=[own], tool_choice={"type": "none"}).tools == ()
    for tools in ([server], []):
        with pytest.raises(FleetError, match="Anthropic's servers"):
            messages(tools=tools, tool_choice={"type": "any"})


def test_counting_needs_no_limit_and_reads_the_same() -> None:
    counted = decode_count(body(messages=[USER], system="s", thinking={"type": "adaptive"}))
    asked = messages(system="s", thinking={"type": "adaptive"})
    assert (counted.messages, counted.template_options) == (asked.messages, asked.template_options)


# -- Chat Completions ------------------------------------------------------------------------------


def test_choices_of_tools_in_chat() -> None:
    tools = [{"type": "function", "function": TOOL}, {"type": "web_search"}]
    f = {"name": "f"}
    assert chat(tools=tools).call is None
    assert chat(tools=tools, tool_choice="required").call == ""
    assert chat(tools=tools, tool_choice={"type": "function", "function": f}).call == "f"
    assert chat(tools=tools, tool_choice="none").tools == ()
    allowed = {"mode": "required", "tools": [{"type": "function", "function": f}]}
    picked = chat(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (picked.call, len(picked.tools)) == ("", 1)
    assert chat(tools=tools, parallel_tool_calls=False).one_call
    legacy = chat(functions=[TOOL], function_call=f)
    assert (legacy.call, legacy.one_call, legacy.tools[0].name) == ("f", True, "f")


def test_sampling_in_chat() -> None:
    sampling = chat(
        max_tokens=5,
        max_completion_tokens=7,
        temperature=0,
        top_k=-1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"7": -100, "5": 1},
        logprobs=True,
        top_logprobs=3,
        stop="END",
        min_tokens=2,
        allowed_token_ids=[1, 2],
    ).sampling
    assert sampling.max_tokens == 7
    assert (sampling.temperature, sampling.top_k) == (0, 0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == ((5, 1.0), (7, -100.0))
    assert (sampling.logprobs, sampling.stop, sampling.allowed_token_ids) == (3, ("END",), (1, 2))
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(max_tokens=10**30).sampling.max_tokens == 2**31 - 1


def test_messages_in_chat() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    request = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}]},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "c", "content": None},
            {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
            {"role": "function", "name": "g", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        ],
        reasoning_effort="none",
    )
    assert [str(message.role) for message in request.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert request.messages[2].reasoning == "hm"
    assert request.messages[2].tool_calls == (ToolCall("c", "f", "{}"),)
    assert request.messages[-1].content == "no"
    assert request.template_options["enable_thinking"] is False


def test_tiers_and_numbers_of_choices() -> None:
    def decoded(**fields: Any) -> Call:
        return decode_chat(body(messages=[USER], **fields))

    assert [choice.number for choice in decoded(n=3).choices] == [0, 1, 2]
    assert decoded(service_tier="priority").priority is Priority.HIGH
    assert decoded(service_tier="flex").priority is Priority.LOW
    assert decoded(seed=5).seed == 5


# -- Completions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        (["a", [3]], ["a", (3,)]),
    ],
)
def test_forms_of_prompts(prompt: Any, prompts: list[Any]) -> None:
    call = decode_completion(body(prompt=prompt, n=2))
    assert [choice.request.prompt for choice in call.choices[::2]] == prompts
    assert [choice.number for choice in call.choices] == [0, 1] * len(prompts)
    assert call.choices[0].request.sampling.max_tokens == 16
    assert call.choices[0].request.add_special
    bare = decode_completion(body(prompt=prompt, add_special_tokens=False))
    assert not bare.choices[0].request.add_special
    for adds in (True, False):
        asked = TokenizeRequest("m", "text", add_special_tokens=adds)
        assert prompt_of(asked, b"").add_special is adds


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ],
)
def test_what_completions_refuse(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(FleetError) as refused:
        decode_completion(body(**fields))
    assert refused.value.error.param == param


# -- Responses -------------------------------------------------------------------------------------


def test_items_of_responses() -> None:
    thought = {"type": "reasoning", "summary": [], "encrypted_content": sealed("hm 🎉")}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x":1}'}
    request = responses(
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        thought,
        {"role": "assistant", "content": [{"type": "output_text", "text": "Look."}]},
        call,
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "42"}],
        },
        {"type": "web_search_call", "id": "x"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so"}]},
        instructions="Be brief.",
    )
    assert roles(request) == [
        ("system", "Be brief."),
        ("system", "rules"),
        ("user", "Hi"),
        ("assistant", "Look."),
        ("tool", "42"),
        ("assistant", ""),
    ]
    assert request.messages[3].reasoning == "hm 🎉"
    assert request.messages[3].tool_calls == (ToolCall("c", "f", '{"x":1}'),)
    assert request.messages[-1].reasoning == "so"


def test_tools_of_responses() -> None:
    own = {"type": "function", **TOOL}
    tools = [own, {"type": "namespace", "name": "n"}, {"type": "web_search"}]
    assert [tool.name for tool in responses(tools=tools).tools] == ["f"]
    assert responses(tools=tools, tool_choice={"type": "function", "name": "f"}).call == "f"
    assert responses(tools=tools, tool_choice="required").call == ""
    for choice in ("required", {"type": "function", "name": "g"}, "maybe"):
        with pytest.raises(FleetError, match="tool_choice"):
            responses(tools=[], tool_choice=choice)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
    ],
)
def test_what_responses_refuse(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(FleetError) as refused:
        decode_responses(body(**{"input": "Hi", **fields}))
    assert refused.value.error.param == param
