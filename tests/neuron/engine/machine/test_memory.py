"""The KV budget's arithmetic."""

from typing import Any

import pytest

from neuron.engine.machine.memory import KVBudget, check_weights_fit, kv_budget, unevenness
from neuron.models.errors import LoadCode, LoadError

GIB = 1 << 30


def budget(**changes: Any) -> tuple[int, int, str]:
    settings: dict[str, Any] = {
        "free": 8 * GIB,
        "bytes_per_token": 1000,
        "context_limit": 4096,
        "max_running": 8,
        "asked_bytes": None,
        "share": 0.5,
    }
    found: KVBudget = kv_budget(**settings | changes)
    return found.blocks, found.context_limit, found.why


def test_no_more_than_all_running_contexts() -> None:
    assert budget()[:2] == (8 * 256, 4096)


def test_a_share_of_what_is_free() -> None:
    assert budget(free=60_000_000)[:2] == (1875, 4096)


def test_what_was_asked_for() -> None:
    assert budget(asked_bytes=16_000 * 300)[:2] == (300, 4096)


def test_the_context_shrinks_to_what_fits() -> None:
    assert budget(asked_bytes=16_000 * 100)[:2] == (100, 1600)


def test_a_tiny_model_needs_no_minimum() -> None:
    assert budget(context_limit=20, max_running=1)[:2] == (2, 20)


@pytest.mark.parametrize(
    "changes",
    [{"asked_bytes": 16_000 * 3}, {"free": 16_000 * 7}, {"asked_bytes": GIB, "free": 1_000_000}],
)
def test_too_little_is_an_error_with_the_numbers(changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="16000 bytes") as caught:
        budget(**changes)
    assert caught.value.code is LoadCode.OUT_OF_MEMORY


def test_cards_that_are_not_equal_are_reported() -> None:
    cards = ("cuda:0", "cuda:1")
    assert unevenness(cards, [10 * GIB, 10 * GIB - 1]) == ()
    assert unevenness(("cpu", "cpu"), [10 * GIB, 3 * GIB]) == (), "it is the same memory"
    assert unevenness((), [3 * GIB]) == ()
    (note,) = unevenness(cards, [10 * GIB, 3 * GIB])
    assert note == (
        "free memory is uneven (cuda:0 10 GiB, cuda:1 3 GiB after the weights): the KV cache "
        "is limited to what cuda:1 can hold"
    )


def test_weights_are_checked_before_they_are_read() -> None:
    check_weights_fit(GIB, 2 * GIB, "cpu")
    with pytest.raises(LoadError, match=r"weights 2 GiB.* but 2 GiB are free"):
        check_weights_fit(2 * GIB, 2 * GIB, "cpu")
