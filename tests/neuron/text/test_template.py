"""Chat templates: what they may do, what they are told, and how their failures read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from neuron.text.sandbox import BUDGET, Budget, TemplateEnvironment
from neuron.text.template import ChatTemplate, opens_thinking
from protocol.errors import ErrorCode, FleetError
from protocol.generate import Message, Role, Tool, ToolCall
from tests.neuron.text.models import make_model

HELLO = Message(Role.USER, "hello")


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], ChatTemplate]:
    return lambda source: ChatTemplate.load(make_model(tmp_path, template=source))


def refusal(template: ChatTemplate, *messages: Message, **options: str | bool) -> FleetError:
    with pytest.raises(FleetError) as caught:
        template.render(messages or (HELLO,), (), options, rendered_at=0)
    assert caught.value.error.code is ErrorCode.INVALID_REQUEST
    return caught.value


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "{{ raise_exception('Only one turn, please.') }}",
            "template says: Only one turn, please.",
        ),
        ("\n\n{{ nothing.at_all }}", "line 3: 'nothing' is undefined"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
        ("{{ {} | tojson }}{{ missing | tojson }}", "not JSON serializable"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages.pop() }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.__class__.__name__ }}", "unsafe"),
        ("{% set ns = namespace(_x=1) %}", "private name '_x'"),
        ("{% set ns = namespace() %}{% set ns.__call__ = 1 %}", "private name"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ messages | random }}", "not available"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_failures_are_readable(load: Callable[[str], ChatTemplate], source: str, why: str) -> None:
    error = refusal(load(source))
    assert why in str(error)
    assert error.error.param == "messages"
    assert "Traceback" not in str(error)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set l = range(99999) | list %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) + m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% set cortex_budget = 1 %}"
        "{% set l = range(99999) %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_stopped(
    load: Callable[[str], ChatTemplate], source: str
) -> None:
    refusal(load(source))


@pytest.mark.parametrize(
    "constant", ["'ab' | upper", "'a' ~ 'B' ~ 'c'", "6 * 7", "['A', 'B'] | join", "41 + 1"]
)
def test_nothing_is_computed_when_a_template_is_compiled(constant: str) -> None:
    environment = TemplateEnvironment()
    source = f"{{% if false %}}{{{{ {constant} }}}}{{% endif %}}"
    tree = environment.parse_counted(source)
    code = environment.compile(tree, raw=True)
    assert not any(value in code for value in ("'AB'", "'aBc'", "'42'", "42"))
    shown = environment.from_string(environment.parse_counted(source.replace("false", "true")))
    assert shown.render(**{BUDGET: Budget()}) in ("AB", "aBc", "42")


def test_a_long_conversation_is_within_the_budget(load: Callable[[str], ChatTemplate]) -> None:
    source = (Path(__file__).parent / "templates" / "thinking.jinja").read_text()
    turns = (Message(Role.USER, "question"), Message(Role.ASSISTANT, "answer " * 100)) * 2000
    rendered = load(source).render(turns, (), {}, rendered_at=0)
    assert len(rendered) > 1_000_000


def test_the_clock_is_the_given_moment_in_utc(
    load: Callable[[str], ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = load(
        "{% macro now() %}{{ strftime_now('%d %b %Y %H:%M%Z') }}{% endmacro %}{{ now() }}"
    )
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert template.render((HELLO,), (), {}, rendered_at=1_767_139_199.9) == "30 Dec 2025 23:59"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "strftime_now", "cortex_budget"]
)
def test_options_cannot_replace_the_request(load: Callable[[str], ChatTemplate], name: str) -> None:
    error = refusal(load("{{ messages[0].content }}"), **{name: False})
    assert name in str(error)
    assert error.error.param == "chat_template_kwargs"


def test_options_are_variables(load: Callable[[str], ChatTemplate]) -> None:
    template = load("{{ self is defined }}{{ level }}{{ add_generation_prompt }}")
    options: dict[str, bool | int | float | str | None] = {
        "level": 3,
        "self": "x",
        "add_generation_prompt": True,
    }
    assert template.render((HELLO,), (), options, rendered_at=0) == "True3True"


def test_messages_never_hold_none_and_arguments_are_objects(
    load: Callable[[str], ChatTemplate],
) -> None:
    calls = tuple(
        ToolCall(f"c{n}", "f", text) for n, text in enumerate(["", "[1]", "{", "[" * 9999, "{}"])
    )
    template = load("{{ messages | tojson }}")
    rendered = template.render((Message(Role.ASSISTANT, tool_calls=calls),), (), {}, rendered_at=0)
    (message,) = msgspec.json.decode(rendered)
    assert message["content"] == ""
    assert "reasoning_content" not in message
    assert "tool_call_id" not in message
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{}] * 5


def test_tool_schemas_keep_their_order_and_broken_ones_are_refused(
    load: Callable[[str], ChatTemplate],
) -> None:
    template = load("{{ tools | tojson }}")
    good = Tool("f", "does <f>", msgspec.Raw(b'{"z": 1, "a": {"y": "\xc3\xa4"}}'))
    assert template.render((HELLO,), (good,), {}, rendered_at=0) == (
        '[{"type": "function", "function": {"name": "f", "description": "does <f>", '
        '"parameters": {"z": 1, "a": {"y": "ä"}}}}]'
    )
    with pytest.raises(FleetError, match="parameters of the tool 'g'") as caught:
        template.render((HELLO,), (Tool("g", "", msgspec.Raw(b"{")),), {}, rendered_at=0)
    assert caught.value.error.param == "tools"


@pytest.mark.parametrize(
    ("rendered", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_opens_thinking(rendered: str, opens: bool) -> None:
    assert opens_thinking(rendered) is opens


def test_a_model_without_template_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        FleetError, match=r"no chat template .* Use its instruction-tuned"
    ) as caught:
        ChatTemplate.load(make_model(tmp_path))
    assert caught.value.error.code is ErrorCode.INVALID_REQUEST
    named = {"chat_template": [{"name": "rag", "template": "x"}]}
    with pytest.raises(FleetError, match="found only rag"):
        ChatTemplate.load(make_model(tmp_path, tokenizer_config=named))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"chat_template": 7}, "tokenizer_config.json, key 'chat_template': expected"),
        ({"chat_template": [{"name": "default"}]}, "missing required field `template`"),
        ({"chat_template": "{% for %}"}, "not valid Jinja (line 1"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, config: dict[str, object], problem: str) -> None:
    with pytest.raises(FleetError) as caught:
        ChatTemplate.load(make_model(tmp_path, tokenizer_config=config))
    assert problem in str(caught.value)


def test_text_modules_never_import_the_machine_learning_stack() -> None:
    program = (
        "import sys, neuron.text.template\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_mistral_gets_ids_of_nine_characters(load: Callable[[str], ChatTemplate]) -> None:
    """Its templates refuse all others, and clients send back ids in many forms."""
    template = load(
        "[TOOL_CALLS]{% for m in messages %}"
        "{% for c in m.tool_calls or [] %}{{ c.id }}|{% endfor %}{{ m.tool_call_id }}|{% endfor %}"
    )

    def ids(call: str, result: str) -> list[str]:
        called = Message(Role.ASSISTANT, tool_calls=(ToolCall(call, "f"),))
        answered = Message(Role.TOOL, "1", tool_call_id=result)
        text = template.render((HELLO, called, answered), (), {}, rendered_at=0)
        return [found for found in text.removeprefix("[TOOL_CALLS]").split("|") if found]

    call, result = ids("call_1b2c3d4e_0", "call_1b2c3d4e_0")
    assert call == result
    assert len(call) == 9
    assert call.isalnum()
    assert ids("call_1b2c3d4e_1", "toolu_x")[0] != call
    assert ids("abcDEF123", "abcDEF123") == ["abcDEF123"] * 2


@pytest.mark.parametrize("moment", [1e300, float("inf"), float("nan"), -1e18])
def test_what_no_request_holds_is_refused_all_the_same(
    load: Callable[[str], ChatTemplate], moment: float
) -> None:
    template = load("{{ messages }}")
    with pytest.raises(FleetError, match="is no time"):
        template.render((HELLO,), (), {}, rendered_at=moment)
    with pytest.raises(FleetError, match="no message to continue"):
        template.render((), (), {}, rendered_at=0, continues_last=True)
