"""How long a load will still take."""

import pytest

from neuron.service.residents.forecast import LoadForecast


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_what_it_took_last_time_less_what_has_passed(clock: list[float]) -> None:
    forecast = LoadForecast(8.0)
    assert forecast.left(0, 0) == 8.0
    clock[0] += 6.0
    assert forecast.left(1, 10) == 2.0, "whatever the share is"
    clock[0] += 6.0
    assert forecast.left(5, 10) == 0.0


def test_the_first_load_goes_by_its_share(clock: list[float]) -> None:
    forecast = LoadForecast(0.0)
    clock[0] += 3.0
    assert forecast.left(0, 0) is None
    assert forecast.left(1, 1000) is None, "too little to tell"
    assert forecast.left(25, 100) == 9.0
    assert forecast.left(100, 100) == 0.0
