"""``cortex up`` when things go wrong around it: disks, servers, and a person who has had enough."""

import contextlib
import os
import signal
import stat
import time
import urllib.error
from pathlib import Path

import pytest

from tests.support.small_disk import small_disk
from tests.support.up import Up, is_alive, running_up

pytestmark = pytest.mark.xdist_group("wall_clock")

MENDED_SECONDS = 3.0


def answers(up: Up) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError):
        return bool(up.ask("What is 17 + 25?", max_tokens=2))
    return False


def test_a_full_disk_is_survived_even_if_nats_dies_on_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, running_up(disk.path / "data") as up:
        disk.fill()
        up.wait(lambda: up.status("/ready") == 503, "it is noticed", 5)
        nats = up.pid_of("nats-server")
        os.kill(nats, signal.SIGKILL)
        up.wait(lambda: not is_alive(nats), "nats-server is dead", 5)
        time.sleep(2)
        assert up.process.poll() is None, up.output
        disk.free()
        began = time.monotonic()
        up.wait(lambda: answers(up), "requests are served", 20)
        assert time.monotonic() - began < MENDED_SECONDS + 1.0, up.output
        up.wait(lambda: up.status("/ready") == 200, "it is ready", 5)


def test_ctrl_c_is_quick(tmp_path: Path) -> None:
    for attempt in range(3):
        with running_up(tmp_path / f"data{attempt}") as up:
            time.sleep(0.3 * attempt)  # at another moment of its poll
            began = time.monotonic()
            up.process.send_signal(signal.SIGINT)
            up.process.wait(10)
            assert time.monotonic() - began < 2.0, up.output
            assert up.process.returncode == 0, up.output


def test_nobody_else_can_read_what_it_writes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with running_up(data) as up:
        answers(up)
        open_to_others = [
            f"{stat.filemode(path.stat().st_mode)} {path}"
            for path in sorted(data.rglob("*"))
            if path.stat().st_mode & 0o077
        ]
        assert open_to_others == []


def test_the_servers_log_survives_the_server(tmp_path: Path) -> None:
    log = tmp_path / "data" / "nats" / "nats.log"
    with running_up(tmp_path / "data") as up:
        nats = up.pid_of("nats-server")
        os.kill(nats, signal.SIGTERM)
        up.wait(lambda: answers(up) and not is_alive(nats), "another one is there", 10)
        assert log.read_text().count("Server is ready") == 2, log.read_text()
        assert f"[{nats}]" in log.read_text(), "what the first one said is still there"
