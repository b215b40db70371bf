"""What engines found out is kept over restarts, for a while, and never in the way."""

import stat
from pathlib import Path

import pytest

from neuron.files import kernel_findings
from neuron.files.kernel_findings import KernelFindings
from neuron.ipc.messages import Findings

FOUND = Findings("packed", 2, True, 4, ("a note",))
OTHER = Findings("plain", 1, False, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kernels.json"


def test_findings_outlive_the_process(path: Path) -> None:
    KernelFindings(path).learn({"a": FOUND})
    again = KernelFindings(path)
    assert again.known() == {"a": FOUND}
    again.learn({"b": OTHER})
    assert KernelFindings(path).known() == {"a": FOUND, "b": OTHER}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_two_neurons_share_the_file(path: Path) -> None:
    one, two = KernelFindings(path), KernelFindings(path)
    one.learn({"a": FOUND})
    two.learn({"b": OTHER})
    assert KernelFindings(path).known() == {"a": FOUND, "b": OTHER}


def test_nothing_is_trusted_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1e9
    monkeypatch.setattr("time.time", lambda: clock)
    findings = KernelFindings(path)
    findings.learn({"a": FOUND})
    clock += kernel_findings.TRUSTED_SECONDS - 1
    assert findings.known() == {"a": FOUND}
    findings.learn({"a": FOUND})  # a load that took it over has found out nothing
    clock += 2
    assert findings.known() == KernelFindings(path).known() == {}
    findings.learn({"a": OTHER})
    assert KernelFindings(path).known() == {"a": OTHER}
    clock -= 1e6
    assert findings.known() == {}, "found in the future: the clock has been set"


def test_the_latest_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1e9
    monkeypatch.setattr("time.time", lambda: clock)
    findings = KernelFindings(path)
    for number in range(kernel_findings.KEPT + 10):
        clock += 1
        findings.learn({str(number): FOUND})
    assert list(KernelFindings(path).known()) == [str(n) for n in range(10, number + 1)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff" * 100])
def test_a_damaged_file_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    findings = KernelFindings(path)
    assert findings.known() == {}
    findings.learn({"a": FOUND})
    assert KernelFindings(path).known() == {"a": FOUND}


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    findings = KernelFindings(tmp_path / "cache" / "kernels.json")
    findings.learn({"a": FOUND})
    assert findings.known() == {"a": FOUND}
    assert stat.S_ISREG((tmp_path / "cache").stat().st_mode)
