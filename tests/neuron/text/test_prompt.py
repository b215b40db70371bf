"""From requests to prompts: what is added to a text, and left out of a long conversation."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers.processors import TemplateProcessing

from neuron.ipc.text_messages import PromptJob
from neuron.text.prompt import Prompt
from neuron.text.prompter import Prompter
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest, Message, Role, Sampling, ToolCall
from tests.neuron.text.models import byte_tokenizer, make_model

TEMPLATE = "<|bos|>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture
def prompter(tmp_path: Path) -> Prompter:
    """Of a model whose texts begin with a token, as Llama's and Gemma's do."""
    folder = make_model(tmp_path, template=TEMPLATE)
    backend = byte_tokenizer()
    bos = backend.token_to_id("<|bos|>")
    backend.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    backend.save(str(folder / "tokenizer.json"))
    return Prompter.load(folder)


def prepared(prompter: Prompter, request: GenerateRequest, limit: int, **job: Any) -> Prompt:
    return prompter.prepare(request, PromptJob(context_limit=limit, vocab_size=1000, **job))


def test_a_text_begins_as_the_models_texts_do(prompter: Prompter) -> None:
    bos = prompter.tokenizer.special_ids["<|bos|>"]

    def tokens(request: GenerateRequest) -> list[int]:
        return (prepared(prompter, request, 100)).tokens

    raw = tokens(GenerateRequest("m", prompt="ab"))
    assert raw == [bos, *prompter.tokenizer.encode("ab")]
    assert tokens(GenerateRequest("m", prompt="ab", add_special=False)) == raw[1:]
    assert tokens(GenerateRequest("m", prompt=(65, 66))) == [65, 66]
    chat = tokens(GenerateRequest("m", (Message(Role.USER, "ab"),)))
    assert chat.count(bos) == 1, "the template has written it"


def turn(number: int) -> tuple[Message, ...]:
    call = ToolCall(f"call_{number}", "f")
    return (
        Message(Role.USER, f"question {number}".ljust(40)),
        Message(Role.ASSISTANT, tool_calls=(call,)),
        Message(Role.TOOL, "result".ljust(40), tool_call_id=call.id),
        Message(Role.ASSISTANT, "answer".ljust(40)),
    )


LONG = GenerateRequest(
    "m",
    (
        Message(Role.SYSTEM, "Be kind."),
        *(message for number in range(8) for message in turn(number)),
        Message(Role.USER, "the last question"),
    ),
    sampling=Sampling(max_tokens=50),
    truncates=True,
)


def kept(prompter: Prompter, prompt: Prompt) -> list[str]:
    text = prompter.tokenizer.decode(prompt.tokens)
    return [piece.strip() for piece in text.split("[user]")]


def test_the_oldest_turns_are_left_out_as_a_whole(prompter: Prompter) -> None:
    whole = prepared(prompter, LONG, 10_000)
    assert len(kept(prompter, whole)) == 10
    prompt = prepared(prompter, LONG, 1000)
    assert len(prompt.tokens) < 1000 - 50
    head, *turns, last = kept(prompter, prompt)
    assert head == "<|bos|>[system]Be kind."
    assert last == "the last question"
    assert [t.split()[1].partition("[")[0] for t in turns] == ["3", "4", "5", "6", "7"]
    with pytest.raises(FleetError) as caught:
        prepared(prompter, msgspec.structs.replace(LONG, truncates=False), 1000)
    assert caught.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    with pytest.raises(FleetError):  # not even the last question fits
        prepared(prompter, LONG, 30)


def test_a_later_attempt_leaves_out_the_same(prompter: Prompter) -> None:
    """Also where the context is longer than on the node that began."""
    first = prepared(prompter, LONG, 700)
    again = prepared(prompter, LONG, 1200, prompt_hash=first.hash)
    assert again.tokens == first.tokens
    assert (prepared(prompter, LONG, 1200)).tokens != first.tokens
