"""``docs/api.md`` is what the code says, and what it says is so."""

import json
from pathlib import Path
from typing import Any

import pytest

from cortex.api.dialects.request_fields import CONSTRAINTS
from tests.docs.api_table import ENDPOINTS, Endpoint, honoured, page
from tests.support.fleet import MODEL, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script

ROOT = Path(__file__).parents[2]
TURN = [{"role": "user", "content": "Hi"}]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TURN},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": TURN, "max_tokens": 5},
}
WRONG: dict[str, Any] = {
    "response_format": {"type": "json_object"},
    "modalities": ["audio"],
    "bad_words": ["x"],
    "suffix": "x",
    **{field: {"x": 1} for field in CONSTRAINTS},
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "background": True,
    "text": {"format": {"type": "json_object"}},
}


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_every_honoured_parameter_names_a_test_that_exists(endpoint: Endpoint) -> None:
    for name, (_, test) in honoured(endpoint).items():
        file, _, function = test.partition("::")
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in source, name


async def test_what_is_ignored_and_what_is_refused(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        for endpoint in ENDPOINTS:
            if endpoint.path not in LEAST:
                continue
            least = {"model": MODEL, **LEAST[endpoint.path]}
            odd: dict[str, Any] = {name: {"any": ["thing"]} for name in endpoint.ignored}
            for known in ("store", "metadata", "user"):  # of a known type in some dialects
                odd.pop(known, None)
            answer = await fleet.client.post(endpoint.path, json=least | odd)
            assert answer.status_code == 200, (endpoint.path, answer.text)
            for name, _ in endpoint.refused:
                answer = await fleet.client.post(endpoint.path, json=least | {name: WRONG[name]})
                assert answer.status_code == 400, (endpoint.path, name)
                error = json.loads(answer.text)["error"]
                assert error["param"].startswith(name)
                assert "Expected" not in error["message"], "refused for its type, not its value"
                nothing = await fleet.client.post(endpoint.path, json=least | {name: None})
                assert nothing.status_code == 200, (endpoint.path, name)
