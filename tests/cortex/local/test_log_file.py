"""Logs of child processes are bounded while they run."""

import stat
from pathlib import Path

from cortex.local.log_file import LogFile, older_part


def test_a_log_keeps_the_latest_lines_within_twice_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    log = LogFile(path, max_bytes=1000)
    for number in range(500):
        log.write(f"line {number}\n".encode())
        assert path.stat().st_size <= 1000 + 10
    log.close()
    kept = older_part(path).read_text() + path.read_text()
    assert kept.endswith("line 498\nline 499\n")
    assert kept.splitlines() == [f"line {n}" for n in range(500)][-len(kept.splitlines()) :]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_continues_where_an_earlier_process_stopped(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    for word in (b"one\n", b"two\n"):
        log = LogFile(path)
        log.write(word)
        log.close()
    assert path.read_text() == "one\ntwo\n"


def test_lines_that_cannot_be_written_are_dropped(tmp_path: Path) -> None:
    LogFile(tmp_path / "no" / "such" / "folder").write(b"lost\n")
    LogFile(tmp_path).write(b"lost\n")
