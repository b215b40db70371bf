"""The demo model's split, its questions, and the files that ship beside its weights."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training import render
from training.batches import Encoder
from training.data import Question, examples, held_out_questions, is_held_out
from training.evaluate import is_answered
from training.split import Kind
from training.tokenizer import CONTROL_TOKENS, END, MARKUP_TOKENS, START
from training.turns import Skill, column_addition


def weather_conversation() -> list[dict[str, object]]:
    call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    return [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"weather": "sunny"}'},
    ]


def weather_tools() -> list[dict[str, object]]:
    city = {"type": "string", "description": "Où? <b>"}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    return [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]


HELD_OUT_SEVENS = [3, 5, 15, 20, 24, 27, 29, 47, 51, 61, 71, 79, 84, 91]
"""The numbers whose sum with 7 is held out."""


class TestSplit:
    def test_is_stable(self) -> None:
        """A changed hash would move trained items into the held-out set of shipped weights."""
        held_out = [a for a in range(100) if is_held_out(Kind.SUM, f"{min(a, 7)}+{max(a, 7)}")]
        assert held_out == HELD_OUT_SEVENS

    def test_holds_out_a_tenth(self) -> None:
        pairs = [f"{a}+{b}" for a in range(100) for b in range(a, 100)]
        share = sum(is_held_out(Kind.SUM, pair) for pair in pairs) / len(pairs)
        assert 0.08 < share < 0.12

    def test_ignores_case_and_final_marks(self) -> None:
        for text in ("tell me a joke", "What is a river", "write a poem about snow"):
            variants = {is_held_out(Kind.UNKNOWN, text + mark) for mark in ("", ".", "?", " ?\n")}
            assert variants == {is_held_out(Kind.UNKNOWN, text.upper())}

    def test_training_has_no_held_out_item(self) -> None:
        for example in islice(examples(seed=3), 2000):
            assert not any(is_held_out(item.kind, item.key) for item in example.items)

    def test_training_does_not_ask_the_questions(self) -> None:
        asked = {
            json.dumps(question.messages)
            for question in held_out_questions(300)
            if question.kind not in ("talk", "fact")
        }
        trained = {json.dumps(list(example.messages)) for example in islice(examples(4), 3000)}
        # Open tasks without a gap, such as "Tell me a joke", are learned by heart.
        assert len(asked & trained) <= 10


class TestQuestions:
    def test_are_the_same_for_the_same_seed(self) -> None:
        assert held_out_questions(40, seed=5) == held_out_questions(40, seed=5)
        assert held_out_questions(40, seed=5) != held_out_questions(40, seed=6)

    def test_are_well_formed(self) -> None:
        questions = held_out_questions(300)
        assert len(questions) == 300
        for question in questions:
            assert question.messages[-1]["role"] in ("user", "tool")
            assert (question.expected_call is None) != (question.expected_answer == "")
            assert (question.expected_reasoning is not None) == question.enable_thinking
            if question.expected_call:
                assert question.tools

    def test_cover_every_skill_with_thinking_on_and_off(self) -> None:
        kinds = Counter(
            (question.kind.split()[0], question.enable_thinking)
            for question in held_out_questions(300)
        )
        assert set(kinds) == {(skill.value, thinking) for skill in Skill for thinking in (0, 1)}

    def test_match_their_own_answers_only(self) -> None:
        for question in held_out_questions(60):
            calls = []
            if question.expected_call:
                name, arguments = question.expected_call
                calls = [{"function": {"name": name, "arguments": json.dumps(arguments)}}]
            assert question.matches(question.expected_answer, calls)
            assert not question.matches(question.expected_answer + "!", calls)
            assert not question.matches(question.expected_answer, [*calls, {"function": {}}])

    def test_accept_what_training_teaches(self) -> None:
        """The completion that is learned and the answer that is expected are one format."""
        for example in islice(examples(7), 200):
            call: tuple[str, dict[str, object]] | None = None
            if example.call is not None:
                call = "get_weather", {"city": example.call.city}
            question = Question(
                kind="",
                messages=[],
                tools=[],
                enable_thinking=example.thinking,
                expected_answer=example.answer,
                expected_call=call,
                expected_reasoning=None,
            )
            assert is_answered(question, example.completion)


@pytest.mark.parametrize(
    ("a", "b", "thought"),
    [
        (17, 25, "7 + 5 = 12, carry 1. 1 + 2 + 1 = 4."),
        (3, 4, "3 + 4 = 7. 0 + 0 = 0."),
        (99, 99, "9 + 9 = 18, carry 1. 9 + 9 + 1 = 19."),
    ],
)
def test_column_addition(a: int, b: int, thought: str) -> None:
    assert column_addition(a, b) == thought


CONVERSATIONS: list[list[dict[str, object]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]}],
    [
        {"role": "user", "content": "2+3"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n2 + 3 = 5."},
        {"role": "user", "content": "Plus 4?"},
    ],
    weather_conversation(),
    [*weather_conversation(), {"role": "tool", "tool_call_id": "call_2", "content": "21 °C"}],
]  # fmt: skip


class TestTemplate:
    @pytest.mark.parametrize("messages", CONVERSATIONS)
    @pytest.mark.parametrize("tools", [None, weather_tools()])
    @pytest.mark.parametrize("thinking", [False, True])
    def test_equals_transformers(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None,
        thinking: bool,
    ) -> None:
        theirs = AutoTokenizer.from_pretrained(render.MODEL_FOLDER).apply_chat_template(
            messages,
            tools=tools,
            enable_thinking=thinking,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert render.prompt(messages, tools or (), enable_thinking=thinking) == theirs

    def test_arguments_may_be_an_object_or_its_text(self) -> None:
        as_text = weather_conversation()
        as_object = json.loads(
            json.dumps(as_text).replace('"{\\"city\\": \\"Oslo\\"}"', '{"city": "Oslo"}')
        )
        assert as_object != as_text
        assert prompt(as_object) == prompt(as_text)

    def test_earlier_thoughts_are_left_out(self) -> None:
        assert "Easy." not in prompt(CONVERSATIONS[3])
        assert "assistant\n2 + 3 = 5.<|im_end|>" in prompt(CONVERSATIONS[3])

    def test_answers_of_parallel_calls_share_a_turn(self) -> None:
        assert prompt(CONVERSATIONS[5]).endswith(
            "<|im_start|>user\n"
            '<tool_response>\n{"weather": "sunny"}\n</tool_response>\n'
            "<tool_response>\n21 °C\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )


def prompt(messages: Sequence[Mapping[str, object]]) -> str:
    return render.prompt(messages, enable_thinking=False)


class TestTokenizer:
    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(render.MODEL_FOLDER / "tokenizer.json"))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "17 + 25 = 42.",
            "naïve café",
            "日本語のテキスト",
            "👩\u200d👩\u200d👧 🙂",
            "a\u0000b\ufffd",
            "  \n\n\t x \r\n",
            "<think>\n\n</think>\n\n",
        ],
    )
    def test_round_trips_any_text(self, tokenizer: Tokenizer, text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text

    def test_digits_are_single_tokens(self, tokenizer: Tokenizer) -> None:
        assert len(tokenizer.encode("12345").ids) == 5

    def test_control_tokens_vanish_and_markup_stays(self, tokenizer: Tokenizer) -> None:
        for token in (*CONTROL_TOKENS, *MARKUP_TOKENS):
            ids = tokenizer.encode(token).ids
            assert len(ids) == 1
            assert tokenizer.decode(ids) == ("" if token in CONTROL_TOKENS else token)

    def test_transformers_encodes_the_same(self, tokenizer: Tokenizer) -> None:
        theirs = AutoTokenizer.from_pretrained(render.MODEL_FOLDER)
        for example in islice(examples(9), 50):
            text = render.prompt(example.messages, example.tools, enable_thinking=True)
            assert theirs.encode(text) == tokenizer.encode(text).ids

    def test_the_loss_is_about_the_assistant_only(self, tokenizer: Tokenizer) -> None:
        encoder = Encoder(tokenizer)
        for example in islice(examples(11), 300):
            encoded = encoder.encode(example)
            pairs = zip(encoded.ids, encoded.learned, strict=True)
            learned = tokenizer.decode(
                [i for i, is_learned in pairs if is_learned], skip_special_tokens=False
            )
            assert learned.endswith(f"{example.completion}{END}")
            assert START not in learned
            earlier = [message for message in example.messages if message["role"] == "assistant"]
            assert learned.count(END) == len(earlier) + 1
