"""Time of the sampler at a full vocabulary, beside torch's argmax: ``python -m bench.sampler``.

Each figure is a median over the whole batch, in milliseconds; the ratio is to argmax over the same
logits. *flat* logits are those of a random-weight model, *peaked* ones have the shape of a trained
model's: a few likely tokens and a long tail.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch

from neuron.engine.sampling.logits_processors import LogitsProcessors
from neuron.engine.sampling.sampler import SampleRow, choose
from neuron.ipc.messages import SamplingParams

VOCAB = 151_936
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-p 0.95, temperature 0.7": {"temperature": 0.7, "top_p": 0.95},
    "top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "top-p 0.1": {"temperature": 1.0, "top_p": 0.1},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
    "top-k 20, top-p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "unrestricted": {"temperature": 1.0},
    "greedy, penalties": {"frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "greedy, bias": {"logit_bias": tuple((token, 1.0) for token in range(1000))},
    "greedy, allowed": {"allowed_tokens": tuple(range(1000))},
    "greedy, 20 logprobs": {"logprobs": 20},
}


def make_logits(kind: str, rows: int) -> torch.Tensor:
    """Logits ``[rows, vocab]`` of a *kind*."""
    normal = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(0))
    if kind == "flat":
        return normal
    return normal * 2.2 - 8 + 30 * torch.rand(rows, VOCAB).pow(600)


def median_ms(
    work: Callable[[Any], object], repeats: int, prepare: Callable[[int], Any] = int
) -> float:
    """The median time of *work* on what *prepare* makes of the turn, after two to warm up."""
    times = []
    for turn in range(repeats + 2):
        prepared = prepare(turn)
        started = time.perf_counter()
        work(prepared)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) * 1e3


def rows_of(
    case: dict[str, Any], count: int, tables: LogitsProcessors, turn: int
) -> list[SampleRow]:
    """The rows of a batch whose answers have 200 tokens already, as they are at step *turn*."""
    rows = []
    for number in range(count):
        sample = SamplingParams(1000, seed=number, **case)
        tokens = [(number + 7 * i) % 5000 for i in range(700 + turn)]
        table = tables.of(number, sample, tokens, 500)
        rows.append(SampleRow(sample, 500, 200 + turn, table))
    return rows


def again(work: Callable[..., object], *arguments: object) -> None:
    """Calls *work* with all but the last, the turn."""
    work(*arguments[:-1])


def choose_copy(copy: torch.Tensor, logits: torch.Tensor, rows: list[SampleRow]) -> None:
    """Chooses from a copy of *logits*, which the sampler may change."""
    choose(copy.copy_(logits), rows)


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=15, show_default=True)
@torch.inference_mode()
def main(threads: int, repeats: int) -> None:
    """Prints the table."""
    torch.set_num_threads(threads)
    print(f"{VOCAB} tokens, {threads} threads, float32: median ms per batch, (ratio to argmax)")
    for kind in ("peaked", "flat"):
        for count in (1, 8):
            logits = make_logits(kind, count)
            copy = torch.empty_like(logits)
            copying = median_ms(partial(again, copy.copy_, logits), repeats)
            argmax = median_ms(partial(again, torch.argmax, logits, -1), repeats)
            print(f"\n{kind} logits, batch {count}: argmax {argmax:.2f} ms")
            for name, case in CASES.items():
                tables = LogitsProcessors(VOCAB, torch.device("cpu"))
                work = partial(choose_copy, copy, logits)
                spent = median_ms(work, repeats, partial(rows_of, case, count, tables))
                spent -= copying  # a step would not copy; the sampler may change its logits
                print(f"  {name:<30} {spent:8.2f}  ({spent / argmax:.1f})")


if __name__ == "__main__":
    main()
