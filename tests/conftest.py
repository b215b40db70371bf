"""Fixtures for the whole suite: factories, no state."""

import inspect
import os
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

# A busy machine may take its time over one example; whether a property holds is all that counts.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Names each test's group in its id, by which the scheduler keeps groups together.

    In a worker of ``--dist loadgroup`` only. xdist 3.8 would do it, but sets an attribute that
    pytest no longer reads; what it has named already is left alone.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            item._id = NodeId.parse(f"{item.nodeid}@{mark.args[0]}")


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
