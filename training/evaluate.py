"""Scores of a demo model on held-out questions, per kind, with thinking on and off.

Run as ``python -m training.evaluate``; generation is greedy, as the model's own defaults ask.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from training import render
from training.data import Question, held_out_questions
from training.model import load_model
from training.tokenizer import END, PAD, token_id

MAX_TOKENS = 260
_AT_ONCE = 64
_CALL = re.compile(
    r'<tool_call>\n\{"name": "(?P<name>[^"]*)", "arguments": (?P<arguments>.*)\}\n</tool_call>'
)


@dataclass(slots=True)
class Scores:
    """Right answers and questions, per kind and thinking."""

    right: dict[tuple[str, bool], int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[tuple[str, bool], int] = field(default_factory=lambda: defaultdict(int))
    mistakes: list[tuple[Question, str]] = field(default_factory=list)
    """What was asked and the whole text that the model wrote."""

    def add(self, question: Question, text: str) -> None:
        """Counts one answer."""
        key = (question.kind, question.enable_thinking)
        is_right = is_answered(question, text)
        self.asked[key] += 1
        self.right[key] += is_right
        if not is_right:
            self.mistakes.append((question, text))

    def share(self, thinking: bool | None = None) -> float:
        """Right answers / questions, over all or over one setting of thinking."""
        keys = [key for key in self.asked if thinking is None or key[1] == thinking]
        return sum(self.right[key] for key in keys) / max(1, sum(self.asked[key] for key in keys))

    def table(self) -> str:
        """A Markdown table with one row per kind."""
        lines = ["| kind | thinking off | thinking on |", "|---|---|---|"]
        for kind in sorted({kind for kind, _ in self.asked}):
            cells = [f"{self.right[kind, on]}/{self.asked[kind, on]}" for on in (False, True)]
            lines.append(f"| {kind} | {cells[0]} | {cells[1]} |")
        lines.append(f"| **all** | {self.share(False):.2%} | {self.share(True):.2%} |")
        return "\n".join(lines)


def is_answered(question: Question, text: str) -> bool:
    """Whether the generated text, thoughts and calls included, is the right answer."""
    if question.enable_thinking:
        thought, closed, text = text.partition("\n</think>\n\n")
        if not closed or not thought.startswith("<think>\n"):
            return False
    calls = [{"function": match.groupdict()} for match in _CALL.finditer(text)]
    return question.matches(_CALL.sub("", text), calls)


@torch.inference_mode()
def generate(model: Qwen3ForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Greedy continuations of several prompts at once, without their end token."""
    pad, end = token_id(tokenizer, PAD), token_id(tokenizer, END)
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    width = max(len(ids) for ids in encoded)
    inputs = torch.tensor([[pad] * (width - len(ids)) + ids for ids in encoded])
    outputs = model.generate(
        input_ids=inputs,
        attention_mask=torch.ne(inputs, pad).long(),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=[end, pad],
        pad_token_id=pad,
    )
    texts = []
    for row in outputs[:, width:].tolist():
        ends = [row.index(token) for token in (end, pad) if token in row]
        texts.append(tokenizer.decode(row[: min(ends, default=None)], skip_special_tokens=False))
    return texts


def _by_length(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Groups in which the long counting answers do not hold up the short ones."""
    ordered = sorted(questions, key=lambda question: len(question.expected_answer))
    for start in range(0, len(ordered), _AT_ONCE):
        yield ordered[start : start + _AT_ONCE]


def evaluate(
    model: Qwen3ForCausalLM, tokenizer: Tokenizer, questions: Sequence[Question]
) -> Scores:
    """Asks all questions."""
    scores = Scores()
    for group in _by_length(questions):
        prompts = [
            render.prompt(
                question.messages, question.tools, enable_thinking=question.enable_thinking
            )
            for question in group
        ]
        for question, text in zip(group, generate(model, tokenizer, prompts), strict=True):
            scores.add(question, text)
    return scores


def evaluate_folder(folder: Path, dtype: torch.dtype, count: int, seed: int) -> Scores:
    """Scores of stored weights, computing in the given type."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return evaluate(load_model(folder, dtype), tokenizer, held_out_questions(count, seed))


def main() -> None:
    """Prints the scores of a stored model and its mistakes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=render.MODEL_FOLDER)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    scores = evaluate_folder(options.model, dtype, options.count, options.seed)
    print(scores.table())
    for question, text in scores.mistakes:
        asked = " / ".join(str(message.get("content")) for message in question.messages)
        wanted = question.expected_answer or question.expected_call
        print(f"\n{question.kind}: {asked}\n  wanted: {wanted}\n  got:    {text!r}")


if __name__ == "__main__":
    main()
