"""The environment that engine processes get."""

import pytest

from neuron.config import engine_environment


def test_engines_use_huge_pages_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert engine_environment()["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert engine_environment()["THP_MEM_ALLOC_ENABLE"] == "0"


def test_devices_are_counted_as_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert engine_environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
