"""The KV budget's arithmetic and the reading of the machine's memory."""

from pathlib import Path
from typing import Any

import pytest

from neuron.engine.memory import KVBudget, check_weights_fit, host_free_bytes, kv_budget
from neuron.models.errors import LoadCode, LoadError

GIB = 1 << 30


def budget(**changes: Any) -> KVBudget:
    settings: dict[str, Any] = {
        "free": 8 * GIB,
        "bytes_per_token": 1000,
        "context_limit": 4096,
        "max_running": 8,
        "asked_bytes": None,
        "share": 0.5,
    }
    return kv_budget(**settings | changes)


def test_no_more_than_all_running_contexts() -> None:
    assert budget() == KVBudget(8 * 256, 4096)


def test_a_share_of_what_is_free() -> None:
    assert (
        budget(free=100_000_000) == KVBudget(3125, 4096) or budget(free=60_000_000).blocks == 1875
    )


def test_what_was_asked_for() -> None:
    assert budget(asked_bytes=16_000 * 300) == KVBudget(300, 4096)


def test_the_context_shrinks_to_what_fits() -> None:
    assert budget(asked_bytes=16_000 * 100) == KVBudget(100, 1600)


def test_a_tiny_model_needs_no_minimum() -> None:
    assert budget(context_limit=20, max_running=1) == KVBudget(2, 20)


@pytest.mark.parametrize(
    "changes",
    [{"asked_bytes": 16_000 * 3}, {"free": 16_000 * 7}, {"asked_bytes": GIB, "free": 1_000_000}],
)
def test_too_little_is_an_error_with_the_numbers(changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="16000 bytes") as caught:
        budget(**changes)
    assert caught.value.code is LoadCode.OUT_OF_MEMORY


def test_weights_are_checked_before_they_are_read() -> None:
    check_weights_fit(GIB, 2 * GIB, "cpu")
    with pytest.raises(LoadError, match=r"weights 2\.0 GiB.* but 2\.0 GiB are free"):
        check_weights_fit(2 * GIB, 2 * GIB, "cpu")


def machine(tmp_path: Path, **groups: dict[str, str]) -> int:
    """Free bytes of a machine with 1000 MiB available, in control group /a/b."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1024000 kB\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    for name, files in groups.items():
        folder = tmp_path / "groups" / {"root": "", "a": "a", "b": "a/b"}[name]
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / f"memory.{file}").write_text(text + "\n")
    return host_free_bytes(tmp_path / "meminfo", tmp_path / "own", tmp_path / "groups")


def test_memory_without_limits(tmp_path: Path) -> None:
    assert machine(tmp_path) == 1000 << 20
    assert machine(tmp_path, b={"max": "max", "current": "5"}) == 1000 << 20


def test_the_tightest_control_group_counts_and_its_page_cache_is_free(tmp_path: Path) -> None:
    outer = {"max": "900000000", "current": "500000000"}
    stat = "anon 1\ninactive_file 30000000\nactive_file 20000000"
    inner = {"max": "400000000", "current": "300000000", "stat": stat}
    assert machine(tmp_path, a=outer, b=inner) == 150_000_000
    assert machine(tmp_path, a=outer, b=inner | {"max": "max"}) == 400_000_000
