"""From what a contestant did to the figures of a table: pure arithmetic.

Owns which figures a load has, and which of them the contestants are compared by.
"""

import statistics
from itertools import pairwise
from typing import NamedTuple

from bench.engine.loads import Kind, Load, Trace


class Figure(NamedTuple):
    """One number of a load."""

    name: str
    unit: str
    more_is_better: bool


SPEED = Figure("speed", "tok/s", True)
STEP = Figure("step", "ms", False)
COLD = Figure("cold TTFT", "ms", False)
WARM = Figure("warm TTFT", "ms", False)
TTFT_50, TTFT_95 = Figure("TTFT p50", "ms", False), Figure("TTFT p95", "ms", False)
ITL_50, ITL_95 = Figure("ITL p50", "ms", False), Figure("ITL p95", "ms", False)
FIGURES = {
    Kind.PREFILL: (SPEED,),
    Kind.DECODE: (SPEED, STEP),
    Kind.PREFIX: (WARM, COLD),
    Kind.MIXED: (SPEED, TTFT_50, TTFT_95, ITL_50, ITL_95),
}
"""The first of each is what contestants are compared by."""


def of_steps(load: Load, seconds: list[float]) -> dict[str, float]:
    """The figures of a DECODE load from the times of its steps."""
    step = statistics.median(seconds)
    return {SPEED.name: load.batch / step, STEP.name: step * 1000}


def of_traces(load: Load, traces: list[Trace]) -> dict[str, float]:
    """The figures of any other load."""
    firsts = [(trace.times[0] - trace.arrived) * 1000 for trace in traces]
    if load.kind is Kind.PREFILL:
        return {SPEED.name: load.context / firsts[0] * 1000}
    if load.kind is Kind.PREFIX:
        return {COLD.name: firsts[0], WARM.name: firsts[1]}
    gaps = [(after - before) * 1000 for trace in traces for before, after in pairwise(trace.times)]
    tokens = sum(len(trace.times) for trace in traces)
    seconds = max(t.times[-1] for t in traces) - min(t.arrived for t in traces)
    return {
        SPEED.name: tokens / seconds,
        TTFT_50.name: quantile(firsts, 0.5),
        TTFT_95.name: quantile(firsts, 0.95),
        ITL_50.name: quantile(gaps, 0.5),
        ITL_95.name: quantile(gaps, 0.95),
    }


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least *share* of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
