"""Units are read and converted side by side, within a bound, and a failure ends the load."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuron.layers.weight_target import LoadUnit, WeightTarget
from neuron.models import weights
from neuron.models.checkpoint import TensorEntry, canonical, read_checkpoint
from neuron.models.weights import load_units

COUNT = 24
KIB = 1 << 10


@pytest.fixture
def entries(tmp_path: Path) -> dict[str, TensorEntry]:
    tensors = {f"t{n}.weight": torch.full((64, 64), float(n)) for n in range(COUNT)}
    save_file(tensors, tmp_path / "model.safetensors")
    return {canonical(name): entry for name, entry in read_checkpoint(tmp_path).items()}


class Units:
    """One unit for each tensor, which notes what is under way."""

    def __init__(self, staged: int = 0) -> None:
        self.staged = staged
        self.targets: dict[int, torch.Tensor] = {}
        self.open: set[int] = set()
        self.most = 0
        self.finished: dict[int, str] = {}
        self.fails_at = -1
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[LoadUnit]:
        for number in range(COUNT):

            def place(n: int = number) -> None:
                self.targets[n] = torch.empty(64, 64)
                with self._lock:
                    self.open.add(n)
                    self.most = max(self.most, len(self.open))

            def slots(n: int = number) -> dict[str, WeightTarget]:
                return {f"t{n}.weight": WeightTarget.whole(self.targets[n])}

            def finish(n: int = number) -> None:
                if n == self.fails_at:
                    raise ValueError(f"unit {n}")
                assert (self.targets[n] == n).all(), "it is finished once it is read"
                with self._lock:
                    self.open.discard(n)
                    self.finished[n] = threading.current_thread().name

            yield LoadUnit(place, slots, finish, self.staged)


def test_all_are_read_and_finished(entries: dict[str, TensorEntry]) -> None:
    units = Units()
    counts: list[int] = []
    threads = torch.get_num_threads()
    load_units(units, entries, counts.append)
    assert set(units.finished) == set(range(COUNT))
    assert sum(counts) == COUNT * 64 * 64 * 4
    assert torch.get_num_threads() == threads
    assert all("read-weights" in name for name in units.finished.values())


@pytest.mark.parametrize(("staged", "most"), [(16 * KIB, 4), (30 * KIB, 2), (200 * KIB, 1)])
def test_no_more_is_under_way_than_there_is_room_for(
    entries: dict[str, TensorEntry], monkeypatch: pytest.MonkeyPatch, staged: int, most: int
) -> None:
    monkeypatch.setattr(weights, "STAGED_BYTES", 64 * KIB)
    units = Units(staged)
    load_units(units, entries)
    assert len(units.finished) == COUNT
    assert units.most <= most


def test_a_large_one_is_finished_with_all_threads(
    entries: dict[str, TensorEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LARGE_BYTES", 8 * KIB)
    units = Units(staged=8 * KIB)
    load_units(units, entries)
    assert set(units.finished.values()) == {threading.main_thread().name}


@pytest.mark.parametrize("large", [True, False])
def test_a_failure_ends_the_load(
    entries: dict[str, TensorEntry], monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(weights, "LARGE_BYTES", 0 if large else 1 << 40)
    units = Units(staged=8 * KIB)
    units.fails_at = 3
    before = threading.active_count()
    with pytest.raises(ValueError, match="unit 3"):
        load_units(units, entries)
    assert threading.active_count() == before, "no reader is left"
