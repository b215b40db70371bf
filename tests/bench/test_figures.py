"""From times to figures."""

import pytest

from bench.engine.figures import of_steps, of_traces, quantile
from bench.engine.loads import Kind, Load, Trace


def test_quantile_is_a_value_that_enough_do_not_exceed() -> None:
    values = [float(v) for v in range(1, 21)]
    assert quantile(values, 0.5) == 10.0
    assert quantile(values, 0.95) == 19.0
    assert quantile(values, 1.0) == 20.0
    assert quantile([3.0], 0.95) == 3.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_decode_is_measured_by_its_median_step() -> None:
    found = of_steps(Load("", Kind.DECODE, batch=8), [0.1, 0.2, 9.0])
    assert found == {"speed": pytest.approx(40.0), "step": pytest.approx(200.0)}


def test_prefill_counts_the_tokens_of_the_prompt() -> None:
    found = of_traces(Load("", Kind.PREFILL, context=128), [Trace(1.0, [1.5])])
    assert found == {"speed": pytest.approx(256.0)}


def test_prefix_tells_the_first_prompt_from_the_second() -> None:
    found = of_traces(Load("", Kind.PREFIX), [Trace(0.0, [2.0]), Trace(2.0, [2.25])])
    assert found == {"cold TTFT": pytest.approx(2000.0), "warm TTFT": pytest.approx(250.0)}


def test_mixed_counts_from_each_arrival() -> None:
    traces = [Trace(0.0, [1.0, 1.5]), Trace(2.0, [2.5, 3.0, 4.0])]
    assert of_traces(Load("", Kind.MIXED), traces) == {
        "speed": pytest.approx(5 / 4),
        "TTFT p50": pytest.approx(500.0),
        "TTFT p95": pytest.approx(1000.0),
        "ITL p50": pytest.approx(500.0),
        "ITL p95": pytest.approx(1000.0),
    }
