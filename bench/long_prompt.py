"""What a long prompt does to streams that run: ``python -m bench.long_prompt [FOLDER]``.

Sixteen streams decode when a prompt of 32,768 tokens arrives. Printed is the 95th percentile of
the time between their tokens while the prompt is read, over the time of a decode step plus that of
a step of one chunk; both are medians of the same run. Without a folder, a random model of 30
million parameters is made.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from neuron.engine.engine import Engine
from neuron.engine.loader import CHUNK_TOKENS, load_engine
from neuron.engine.messages import Add, Sample, Start, Step
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
    chunk = _chunk_seconds(engine)
    for number in range(1, STREAMS + 1):
        prompt = [(number * 31 + i * 7) % 1000 for i in range(64)]
        engine.add(Add(number, prompt, Sample(10_000)))
    while engine.step().tokens != STREAMS:
        pass
    decode = statistics.median(_seconds(engine) for _ in range(20))
    engine.add(Add(99, [i * 13 % 1000 for i in range(LONG)], Sample(1)))
    times: list[float] = []
    began = time.monotonic()
    done = False
    while not done:
        seconds, step = _timed(engine)
        times.append(seconds)
        done = any(output.id == 99 for output in step.outputs)
    times.sort()
    p95, bound = times[int(len(times) * 0.95)], decode + chunk
    label = f"chunk step ({CHUNK_TOKENS['cpu']} tokens)"
    print(f"{'decode step':28}{decode * 1e3:9.1f} ms")
    print(f"{label:28}{chunk * 1e3:9.1f} ms")
    print(f"{'between tokens, median':28}{statistics.median(times) * 1e3:9.1f} ms")
    print(f"{'between tokens, p95':28}{p95 * 1e3:9.1f} ms")
    print(f"{'p95 / (decode + chunk)':28}{p95 / bound:9.2f}")
    print(f"{'the prompt took':28}{time.monotonic() - began:9.1f} s, {len(times)} steps")


def _timed(engine: Engine) -> tuple[float, Step]:
    began = time.perf_counter()
    step = engine.step()
    return time.perf_counter() - began, step


def _seconds(engine: Engine) -> float:
    return _timed(engine)[0]


def _chunk_seconds(engine: Engine) -> float:
    """A step of one chunk at the beginning of a prompt, alone."""
    times = []
    for number in range(1000, 1010):
        prompt = [(number + i * 11) % 1000 for i in range(CHUNK_TOKENS["cpu"])]
        engine.add(Add(number, prompt, Sample(1)))
        times.append(_seconds(engine))
    return statistics.median(times)


if __name__ == "__main__":
    main()
