"""Padding to the quickest number of rows: found by trying, and without influence on results."""

from pathlib import Path
from typing import Any

import pytest
import torch

from neuron.engine.machine.row_padding import quickest_rows
from neuron.layers.share import Share
from tests.support.rigs import Rig
from tests.support.tiny_models import write_checkpoint


class Clock:
    """Takes the place of the module ``time``; it goes on when a map computes."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("neuron.engine.machine.row_padding.time", made)
    return made


class Map:
    """A linear map that takes as long as the test says."""

    inputs = Share(0, 8, 8)
    nbytes = 1

    def __init__(self, milliseconds: dict[int, float], clock: Clock) -> None:
        self._milliseconds = milliseconds
        self._clock = clock

    def own(self, x: torch.Tensor) -> None:
        self._clock.now += self._milliseconds.get(len(x), 3.0) / 1000


class Model:
    def __init__(self, milliseconds: dict[int, float], clock: Clock) -> None:
        self._map = Map(milliseconds, clock)

    def linear_maps(self) -> Any:
        return iter([self._map])


@pytest.mark.parametrize(
    ("milliseconds", "rows"),
    [({4: 0.5}, 4), ({1: 3.0, 6: 1.0}, 6), ({}, 1), ({1: 0.5}, 1), ({1: 3.0, 3: 2.99}, 1)],
)
def test_the_quickest_is_taken_if_it_is_worth_it(
    clock: Clock, milliseconds: dict[int, float], rows: int
) -> None:
    model: Any = Model(milliseconds, clock)
    assert quickest_rows(model, 1, torch.float32) == rows


def test_never_less_than_what_is_exact(clock: Clock) -> None:
    model: Any = Model({1: 0.1, 2: 3.0}, clock)
    assert quickest_rows(model, 2, torch.float32) >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_no_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    rig = Rig(write_checkpoint(tmp_path), dtype=dtype)
    tokens = list(range(40))
    plain = rig.sequence(tokens)
    expected = torch.cat([rig.logits((plain, 1))[0] for _ in tokens])
    for rows in (3, 4, 6):
        rig.model.pad_to(max(rows, rig.path.linear.least_rows))
        padded = rig.sequence(tokens)
        assert torch.equal(torch.cat([rig.logits((padded, 1))[0] for _ in tokens]), expected)
