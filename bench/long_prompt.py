"""What a long prompt does to streams that run: ``python -m bench.long_prompt [FOLDER]``.

Sixteen streams decode when a prompt of 32,768 tokens arrives. Printed is the 95th percentile of
the time between their tokens while the prompt is read, over the time of a decode step plus that of
a step that computes nothing but one chunk: the chunk of that prompt at 95 % of its length, and, for
comparison, the first one of a prompt, which has no context to read. The streams' own contexts grow
meanwhile by a token a step, so the decode step that counts is the one after the prompt. All are
medians of one run. Without a folder, a random model of 30 million parameters is made.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from neuron.engine.engine import Engine
from neuron.engine.loader import load_engine
from neuron.ipc.defaults import CHUNK_TOKENS
from neuron.ipc.messages import Add, SamplingParams, Start, Step
from neuron.layers.paging import BLOCK_TOKENS
from tests.support.tiny_models import write_checkpoint

STREAMS = 16
LONG = 32_768
SHAPE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 40_960,
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--exact", choices=("on", "off"), default="on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or write_checkpoint(Path(scratch), std=0.02, **SHAPE)
        start = Start(str(folder), max_running=STREAMS + 1, exact=arguments.exact == "on")
        engine, ready = load_engine(start, lambda _: None)
    print(ready.numerics)
    first = _alone(engine, [], CHUNK_TOKENS["cpu"])
    for number in range(1, STREAMS + 1):
        prompt = [(number * 31 + i * 7) % 1000 for i in range(64)]
        engine.add(Add(number, prompt, SamplingParams(10_000)))
    while engine.step().tokens != STREAMS:
        pass
    before = _decode(engine)
    long = [i * 13 % 1000 for i in range(LONG)]
    engine.add(Add(99, long, SamplingParams(1)))
    times: list[float] = []
    sizes: list[int] = []
    began = time.monotonic()
    done = False
    while not done:
        seconds, step = _timed(engine)
        times.append(seconds)
        sizes.append(step.tokens - STREAMS)
        done = any(output.id == 99 for output in step.outputs)
    took = time.monotonic() - began
    decode = _decode(engine)
    for number in range(1, STREAMS + 1):
        engine.abort(number)
    size = sizes[int(len(sizes) * 0.95)]
    far = _alone(engine, long[: int(LONG * 0.95) // BLOCK_TOKENS * BLOCK_TOKENS], size)
    p95 = sorted(times)[int(len(times) * 0.95)]
    _print("decode step before", before)
    _print("decode step after", decode)
    _print(f"first chunk ({CHUNK_TOKENS['cpu']} tokens)", first)
    _print(f"far chunk ({size} tokens)", far)
    _print("between tokens, median", statistics.median(times))
    _print("between tokens, p95", p95)
    print(f"{'p95 / (decode + far chunk)':28}{p95 / (decode + far):9.2f}")
    print(f"{'p95 / (before + first chunk)':28}{p95 / (before + first):9.2f}")
    print(f"{'the prompt took':28}{took:9.1f} s, {len(times)} steps")


def _print(label: str, seconds: float) -> None:
    print(f"{label:28}{seconds * 1e3:9.1f} ms")


def _timed(engine: Engine) -> tuple[float, Step]:
    began = time.perf_counter()
    step = engine.step()
    return time.perf_counter() - began, step


def _decode(engine: Engine) -> float:
    return statistics.median(_timed(engine)[0] for _ in range(20))


def _alone(engine: Engine, context: list[int], tokens: int) -> float:
    """A step of one chunk of *tokens* behind a *context* that is in the cache."""
    times = []
    for number in range(1000, 1010):
        prompt = context + [(number + i * 11) % 1000 for i in range(tokens)]
        engine.add(Add(number, prompt, SamplingParams(1)))
        seconds, step = _timed(engine)
        assert step.tokens == tokens, "the context was not cached"
        times.append(seconds)
    return statistics.median(times)


if __name__ == "__main__":
    main()
