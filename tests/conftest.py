"""Fixtures for the whole suite: factories, no state."""

import gc
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from _pytest.nodeid import NodeId
from hypothesis import settings

from tests.support.complaints import Complaints
from tests.support.nats import NatsServer, running_nats

# What lies on the Hub must not decide a test.
os.environ["HF_HUB_OFFLINE"] = "1"

# Nor what earlier runs found out about this machine.
_CACHE = tempfile.TemporaryDirectory(prefix="neuron-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# A busy machine may take its time over one example; whether a property holds is all that counts.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the tests in the order for several workers, and names each one's group in its id, by
    which the scheduler keeps groups together.

    In a worker of ``--dist loadgroup`` only. xdist 3.8 would name the groups, but sets an attribute
    that pytest no longer reads; what it has named already is left alone.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        group = _group(item)
        if group and not item.nodeid.endswith(f"@{group}"):
            item._id = NodeId.parse(f"{item.nodeid}@{group}")
    items[:] = _mixed(items)


def pytest_collection_finish() -> None:
    """Exempts what the imports made from every later collection of garbage: there is one after each
    test of coroutines, which would take a tenth of a second."""
    gc.collect()
    gc.freeze()


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return mark.args[0] if mark else ""


def _mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """What measures time comes first: one worker has it, and nothing else, for long. Then what
    mostly waits (fleets of processes) and what computes, in step with each other, so that the
    cores are neither idle nor crowded; of each, long groups come before single tests."""
    groups = sorted(items, key=lambda item: not _group(item))
    timed = [item for item in groups if _group(item) == "wall_clock"]
    rest = [item for item in groups if _group(item) != "wall_clock"]
    waiting = [item for item in rest if _mostly_waits(item)]
    computing = [item for item in rest if not _mostly_waits(item)]
    places = [(i / len(kind), item) for kind in (waiting, computing) for i, item in enumerate(kind)]
    return timed + [item for _, item in sorted(places, key=lambda place: place[0])]


def _mostly_waits(item: pytest.Item) -> bool:
    return item.path.parent.name in ("fleet", "chaos")


@pytest.fixture(autouse=True)
def _nothing_fails_unheard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test of coroutines that leaves a task's error unread, or a task pending."""
    if not inspect.iscoroutinefunction(getattr(request.node, "function", None)):
        yield
        return
    with Complaints() as complaints:
        yield
        heard = complaints.heard()
    assert not heard, "\n".join(heard)


@pytest.fixture
def start_nats(tmp_path: Path) -> Iterator[Callable[[], NatsServer]]:
    """Starts real nats-servers, each with its own data."""
    with ExitStack() as stack:
        count = iter(range(100))
        yield lambda: stack.enter_context(running_nats(tmp_path / f"nats-{next(count)}"))


@pytest.fixture
def nats(start_nats: Callable[[], NatsServer]) -> NatsServer:
    """One real nats-server."""
    return start_nats()
