"""dtypes and threads for the machine at hand."""

from pathlib import Path

import pytest
import torch

from neuron.engine.machine.device import default_threads, torch_dtype
from neuron.hardware import dtypes
from neuron.hardware.host import cpu_flags
from neuron.models.errors import LoadError

CPU, CUDA = "cpu", "cuda"


@pytest.mark.parametrize(
    ("asked", "stored", "on", "flags", "expected"),
    [
        ("auto", "bfloat16", CPU, [], torch.float32),
        ("auto", "bfloat16", CPU, ["avx2", "avx512_bf16"], torch.bfloat16),
        ("auto", "float16", CPU, ["avx512_bf16"], torch.float32),
        ("auto", "float32", CPU, ["amx_bf16"], torch.float32),
        ("auto", "BF16", CUDA, [], torch.bfloat16),
        ("auto", "float16", CUDA, [], torch.float16),
        ("bfloat16", "float32", CPU, [], torch.bfloat16),
        ("float32", "bfloat16", CUDA, [], torch.float32),
    ],
)
def test_dtype(
    asked: str,
    stored: str,
    on: str,
    flags: list[str],
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("neuron.hardware.host.cpu_flags", lambda: flags)
    assert torch_dtype(dtypes.chosen(asked, stored, cpu=on == CPU)) == expected


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(LoadError, match="'int4' is not supported"):
        dtypes.chosen("int4", "float32", cpu=True)


@pytest.mark.parametrize(("on", "expected"), [(CPU, "float32"), (CUDA, "bfloat16")])
def test_float16_is_not_chosen_where_it_overflows(on: str, expected: str) -> None:
    found = dtypes.chosen("auto", "float16", cpu=on == CPU, exceeds_float16=True)
    assert found == expected
    with pytest.raises(LoadError, match=r"cannot be computed in float16.*65,504.*Use bfloat16"):
        dtypes.chosen("float16", "bfloat16", cpu=on == CPU, exceeds_float16=True)


def cpuinfo(tmp_path: Path) -> Path:
    """Two cores with two hyperthreads each."""
    blocks = [
        f"processor\t: {i}\nphysical id\t: 0\ncore id\t\t: {i // 2}\nflags\t\t: sse avx512_bf16\n"
        for i in range(4)
    ]
    (tmp_path / "cpuinfo").write_text("\n".join(blocks))
    return tmp_path / "cpuinfo"


def test_threads_are_physical_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert default_threads(1 << 30, cpuinfo(tmp_path), quota=lambda: None) == 2
    assert default_threads(1 << 20, cpuinfo(tmp_path)) == 1
    assert default_threads(1 << 30, tmp_path / "absent", quota=lambda: None) == 4
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert default_threads(1 << 30, cpuinfo(tmp_path), quota=lambda: None) == 1


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (8.0, 4), (2.5, 2), (0.5, 1)])
def test_threads_are_as_many_as_a_container_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert default_threads(1 << 30, tmp_path / "absent", quota=lambda: quota) == threads


def test_flags(tmp_path: Path) -> None:
    assert cpu_flags(cpuinfo(tmp_path)) == ["sse", "avx512_bf16"]
    assert cpu_flags(tmp_path / "absent") == []
