"""``bin/setup`` on machines that cannot run it: one clear line each, and nothing half done."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def _checkout(path: Path) -> Path:
    """The files that bin/setup looks at."""
    (path / "bin").mkdir(parents=True)
    for name in ("bin/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, path / name)
    return path


def _python(path: Path, *, version: str, is_new_enough: bool, has_venv: bool) -> Path:
    """A stand-in that answers bin/setup's questions."""
    path.write_text(
        f"""#!/bin/sh
case "$2" in
  *print*) echo {version} ;;
  *version_info*) exit {0 if is_new_enough else 1} ;;
  *ensurepip*) exit {0 if has_venv else 1} ;;
  *) echo "venv failed for a reason" >&2; exit 1 ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def _setup(checkout: Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "bin/setup")],
        capture_output=True,
        text=True,
        env={**os.environ, "CORTEX_PYTHON": python},
    )


def test_no_python(tmp_path: Path) -> None:
    result = _setup(_checkout(tmp_path / "c"), "/no/such/python")
    assert result.returncode == 1
    assert result.stderr.startswith("setup: no '/no/such/python' on PATH. Install Python 3.11")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("version", "is_new_enough", "words"),
    [
        ("3.9", False, "setup: Python 3.9 is too old: 3.11 or newer is needed."),
        ("3.12", True, "apt install python3.12-venv"),
    ],
)
def test_an_unfit_python(tmp_path: Path, version: str, is_new_enough: bool, words: str) -> None:
    python = _python(
        tmp_path / "python", version=version, is_new_enough=is_new_enough, has_venv=False
    )
    result = _setup(_checkout(tmp_path / "c"), str(python))
    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_failure_shows_the_log(tmp_path: Path) -> None:
    python = _python(tmp_path / "python", version="3.12", is_new_enough=True, has_venv=True)
    result = _setup(_checkout(tmp_path / "c"), str(python))
    assert result.returncode == 1
    assert "venv failed for a reason" in result.stderr
    assert "its output is above and in .venv/setup.log" in result.stderr
    assert not (tmp_path / "c/.venv/stamp").exists()
