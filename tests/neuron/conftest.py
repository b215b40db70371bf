"""Settings for all of neuron's tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_compute_thread() -> None:
    """Tiny models do not gain from threads, and suffer from a busy machine with more than one."""
    torch.set_num_threads(1)
