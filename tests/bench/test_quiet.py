"""The meter of foreign work, on a /proc made up for it."""

from pathlib import Path

import pytest

from bench.engine import quiet


def _proc(folder: Path, cpu: str, **ticks: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {cpu}\ncpu0 1 1 1 1\n")
    for pid, utime_stime in ticks.items():
        home = folder / pid.removeprefix("p")
        home.mkdir(exist_ok=True)
        head = f"{home.name} (a ) b) S " + "0 " * 10
        (home / "stat").write_text(head + utime_stime + " 0 0 20 0 1\n")
    return folder


def test_what_others_used_is_busy_time_less_own(tmp_path: Path) -> None:
    #                          user nice system idle iowait irq softirq steal guest guest_nice
    before = quiet.read([7], _proc(tmp_path, "100 0 50 1000 10 0 0 0 5 0", p7="40 10"))
    after = quiet.read([7], _proc(tmp_path, "160 10 60 1100 20 0 0 10 45 0", p7="90 20"))
    # 200 ticks went by, 90 of them busy (with 10 stolen by the host), 60 of those our own.
    assert after.foreign_since(before) == pytest.approx(30 / 200)


def test_own_work_alone_is_quiet(tmp_path: Path) -> None:
    before = quiet.read([7], _proc(tmp_path, "0 0 0 0 0 0 0 0", p7="0 0"))
    after = quiet.read([7], _proc(tmp_path, "99 0 0 101 0 0 0 0", p7="90 10"))
    assert after.foreign_since(before) == 0.0


def test_waiting_ends_with_the_first_quiet_window() -> None:
    windows = iter([0.5, 0.06, 0.05, 0.9])
    assert quiet.wait_for_quiet(0.06, 99, measure=lambda: next(windows), clock=lambda: 0.0)
    assert next(windows) == 0.9


def test_waiting_ends_with_patience() -> None:
    times = iter([0.0, 1.0, 2.0, 3.0])
    assert not quiet.wait_for_quiet(0.06, 2.0, measure=lambda: 1.0, clock=lambda: next(times))
    assert next(times) == 3.0
