"""Samples in files, and the tables that are made of them."""

from pathlib import Path

import pytest

from bench.engine.loads import Kind, Load
from bench.engine.report import Report
from bench.engine.samples import Header, Memory, Sample, Store

OURS, PEER = "ours-auto-exact", "generate-fp32"
LOAD = Load("decode 8", Kind.DECODE, batch=8)
HEADER = Header("abc", "a machine", "a model", 2)


def _sample(name: str, repeat: int, speed: float, foreign: float = 0.0, error: str = "") -> Sample:
    figures = {} if error else {"speed": speed, "step": 8000 / speed}
    return Sample(name, LOAD.name, repeat, figures, foreign, error)


def _rows(store: Store) -> dict[str, list[str]]:
    """The cells of every row, by its first cell."""
    rows = {}
    for line in Report(store, [LOAD], 0.06).render().splitlines():
        if line.startswith("| "):
            first, *cells = line.strip("| ").split(" | ")
            rows[first] = cells
    return rows


def test_figures_are_medians_and_ratios_are_taken_within_a_repeat(tmp_path: Path) -> None:
    store = Store(tmp_path, HEADER)
    for repeat, (ours, peer) in enumerate([(20.0, 10.0), (40.0, 10.0), (30.0, 30.0)]):
        store.add(_sample(OURS, repeat, ours))
        store.add(_sample(PEER, repeat, peer))
    rows = _rows(store)
    assert rows["decode 8: speed, tok/s"] == ["30", "10"]
    assert rows["decode 8: speed"] == ["2.00"]  # of 2, 4 and 1; the medians' own would be 3


def test_the_least_disturbed_try_counts_and_what_remains_disturbed_is_marked(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path, HEADER)
    store.add(_sample(OURS, 0, 10.0, foreign=0.5))
    store.add(_sample(OURS, 0, 20.0, foreign=0.01))
    store.add(_sample(PEER, 0, 5.0, foreign=0.4))
    store.add(_sample(PEER, 0, 4.0, foreign=0.3))
    rows = _rows(store)
    assert rows["decode 8: speed, tok/s"] == ["20", "~4"]
    assert rows["decode 8: speed"] == ["~5.00"]


def test_a_failure_is_shown_and_leaves_its_cell_empty(tmp_path: Path) -> None:
    store = Store(tmp_path, HEADER)
    store.add(_sample(OURS, 0, 10.0))
    store.add(_sample(PEER, 0, 0.0, error="RuntimeError: no"))
    assert _rows(store)["decode 8: speed, tok/s"] == ["10", "–"]
    assert "generate-fp32, decode 8: RuntimeError: no" in Report(store, [LOAD], 0.06).render()


def test_a_run_is_resumed_even_after_a_torn_line(tmp_path: Path) -> None:
    store = Store(tmp_path, HEADER)
    store.add(_sample(OURS, 0, 10.0))
    store.note(OURS, "about it", Memory(1.0, 2.0, 3.0, 4.0))
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"contestant": "ou')
    again = Store(tmp_path, HEADER)
    assert again.samples == store.samples
    again.note(OURS, "about it", Memory(0.5, 1.0, 9.0, 5.0))
    assert Store(tmp_path, HEADER).memory[OURS] == Memory(1.0, 2.0, 9.0, 5.0)


def test_samples_of_different_commits_are_not_mixed(tmp_path: Path) -> None:
    Store(tmp_path, HEADER)
    with pytest.raises(ValueError, match="Name another folder"):
        Store(tmp_path, Header("def", "a machine", "a model", 2))


def test_sampling_costs_what_its_steps_take_over_greedy_ones(tmp_path: Path) -> None:
    store = Store(tmp_path, HEADER)
    for load, step in (("decode 8", 100.0), ("decode 8 top-p", 130.0)):
        store.add(Sample(OURS, load, 0, {"speed": 8000 / step, "step": step}, 0.0))
    top_p = Load("decode 8 top-p", Kind.DECODE, batch=8, sampled=True)
    text = Report(store, [top_p], 0.06).render()
    assert "| decode 8 top-p: step over greedy | 1.30 |" in text
