"""Decoding on a host with other work: our engine, with several ways of waiting, and transformers.

Compute threads that spin at barriers are fast on an idle host and ruinous on a busy one: a thread
that waits for a descheduled one burns the time slice that would let it go on. Every contestant is
a process of its own and computes alone, in turns; the foreign load is a number of processes that
only count. A round runs all contestants once; ratios are taken within a round, and the median is
reported.

    PYTHONPATH=src:. python -m bench.busy MODEL_FOLDER --loads 0 1 2 4

transformers runs with one thread, which is what people give it on a busy host.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

PROMPT_TOKENS = 32
OURS: dict[str, dict[str, str]] = {
    "as shipped": {},
    "spinning": {"BENCH_PLAIN": "1"},
    "passive": {"BENCH_PLAIN": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"BENCH_PLAIN": "1", "BENCH_THREADS": "1"},
}
"""What each of our contestants' environments adds to that of a neuron's engines."""
PEER = "transformers, 1 thread"


class Sample(NamedTuple):
    """Tokens per second of one contestant in one round."""

    contestant: str
    load: int
    rows: int
    tokens_per_second: float


def compute_ours(folder: str, rows: int, steps: int) -> float:
    """Decodes *rows* sequences for *steps* steps; returns tokens per second."""
    from neuron.engine.loader import load_engine
    from neuron.engine.machine.barrier_waits import BarrierWaits
    from neuron.ipc.messages import Add, SamplingParams, Start

    waits = BarrierWaits()
    if "BENCH_PLAIN" not in os.environ:
        waits.start()
    threads = int(os.environ.get("BENCH_THREADS", "0")) or None
    start = Start(folder, dtype="float32", max_running=8, max_context=1024, threads=threads)
    engine, _ = load_engine(start, lambda _: None)
    waits.forget()
    for row in range(rows):
        prompt = [(7 * row + 13 * n) % 1000 + 100 for n in range(PROMPT_TOKENS)]
        engine.add(Add(row + 1, prompt, SamplingParams(900)))
    made = 0
    while made < rows:
        made += len(engine.step().outputs)
    for _ in range(3):
        engine.step()
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return rows * steps / (time.perf_counter() - began)


def compute_theirs(folder: str, rows: int, steps: int) -> float:
    """The same by transformers' ``generate``."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [
        [(7 * row + 13 * n) % 1000 + 100 for n in range(PROMPT_TOKENS)] for row in range(rows)
    ]
    ids = torch.tensor(prompt)
    options = {"do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    model.generate(ids, max_new_tokens=2, min_new_tokens=2, **options)
    took = []
    for count in (1, steps + 1):
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        took.append(time.perf_counter() - began)
    return rows * steps / (took[1] - took[0])


@contextlib.contextmanager
def foreign_load(processes: int) -> Iterator[None]:
    """Other people's work."""
    count = [
        subprocess.Popen([sys.executable, "-c", "n = 0\nwhile True: n += 1"])
        for _ in range(processes)
    ]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in count:
            process.kill()
            process.wait()


def take(name: str, folder: str, load: int, rows: int, steps: int) -> Sample:
    """Runs one contestant in its own process beside the load."""
    from neuron.config import engine_environment

    environment = engine_environment()
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment |= OURS.get(name, {})
    command = [sys.executable, "-m", "bench.busy", folder, "--contestant", name]
    command += ["--rows", str(rows), "--steps", str(steps)]
    with foreign_load(load):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=600
        )
    return Sample(name, load, rows, json.loads(done.stdout.splitlines()[-1]))


def table(samples: list[Sample], names: list[str]) -> list[str]:
    """Renders medians, and medians of the ratios to transformers and to spinning."""
    lines = [
        "| load | rows | contestant | tokens/s | × transformers | × spinning |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for load, rows in sorted({(s.load, s.rows) for s in samples}):
        of = {
            name: [s.tokens_per_second for s in samples if s[:3] == (name, load, rows)]
            for name in names
        }
        for name in names:
            ratios = [
                f"{statistics.median(map(float.__truediv__, of[name], of[base])):.2f}"
                if of.get(base)
                else "-"
                for base in (PEER, "spinning")
            ]
            speed = statistics.median(of[name])
            lines.append(f"| {load} | {rows} | {name} | {speed:.1f} | {' | '.join(ratios)} |")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", default=[*OURS, PEER])
    parser.add_argument("--contestant", default="")
    options = parser.parse_args()
    if options.contestant:
        compute = compute_theirs if options.contestant == PEER else compute_ours
        speed = compute(options.folder, options.rows[0], options.steps)
        sys.stdout.write(f"{json.dumps(speed)}\n")
        return
    samples: list[Sample] = []
    for number in range(options.rounds):
        for load in options.loads:
            for rows in options.rows:
                order = options.only if number % 2 else options.only[::-1]
                samples += [take(n, options.folder, load, rows, options.steps) for n in order]
        sys.stdout.write("\n".join([f"\nround {number + 1}", *table(samples, options.only), ""]))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
