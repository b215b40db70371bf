"""Which contestants run a heavy load."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bench.engine.peer import CONTESTANTS
from bench.engine.rival import Rival
from bench.engine.run import quickest
from bench.engine.samples import Header, Sample, Store


def _rivals(*names: str) -> list[Rival]:
    made: list[Any] = [SimpleNamespace(contestant=CONTESTANTS[name]) for name in names]
    return cast(list[Rival], made)


def test_of_each_peer_the_quickest_and_nothing_quantised(tmp_path: Path) -> None:
    store = Store(tmp_path, Header("abc", "a machine", "a model", 2))
    speeds = {
        "ours-auto-exact": 1.0,
        "ours-auto-inexact": 9.0,
        "cb-fp32": 1.0,
        "cb-bf16": 2.0,
        "llama-bf16": 4.0,
        "llama-q8_0": 8.0,
    }
    for name, speed in speeds.items():
        store.add(Sample(name, "decode 8", 0, {"speed": speed}, 0.0))
    rivals = _rivals(
        "ours-auto-exact", "ours-auto-inexact", "cb-fp32", "cb-bf16", "llama-bf16", "llama-q8_0"
    )
    assert [rival.contestant.name for rival in quickest(rivals, store)] == [
        "ours-auto-exact",
        "ours-auto-inexact",
        "cb-bf16",
        "llama-bf16",
    ]


def test_without_a_guide_all_of_a_maker_run(tmp_path: Path) -> None:
    store = Store(tmp_path, Header("abc", "a machine", "a model", 2))
    rivals = _rivals("generate-fp32", "generate-bf16", "llama-q8_0")
    assert [rival.contestant.name for rival in quickest(rivals, store)] == [
        "generate-fp32",
        "generate-bf16",
    ]
