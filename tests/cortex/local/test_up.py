"""What ``cortex up`` says about models."""

from typing import Any

import msgspec

from cortex.api.endpoints.models import ModelObject
from cortex.gateway_client import model_line, table
from protocol.fleet import ModelState, Progress


def _line(**changes: object) -> str:
    return model_line(_model(**changes))


def _model(**changes: object) -> dict[str, Any]:
    model = ModelObject(
        id="m",
        created=0,
        max_model_len=None,
        display_name="m",
        state=ModelState.LOADING,
        nodes=["n1", "n2"],
        available_on=["n1", "n2"],
        error=None,
        progress=None,
        root="m",
        created_at="",
        max_input_tokens=None,
        max_tokens=None,
    )
    model = msgspec.structs.replace(model, **changes)
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(model))
    return decoded


def test_states_progress_and_errors() -> None:
    assert _line() == "m on n1, n2: loading"
    assert _line(progress=Progress("reading", 449, 1000)) == "m on n1, n2: loading, reading 40 %"
    assert _line(progress=Progress("resolving", 0, 1, "steps")) == "m on n1, n2: loading, resolving"
    assert _line(state=ModelState.FAILED, error="no room") == "m on n1, n2: failed: no room"


def test_the_table_of_models() -> None:
    models = [
        _model(state=ModelState.READY, nodes=["n1"]),
        _model(id="alias", state=ModelState.READY, nodes=["n1"]),
        _model(id="other", root="other", state=ModelState.ABSENT, nodes=[], error="No node."),
    ]
    assert table(models) == [
        "MODEL  STATE   NODES",
        "m      ready   n1",
        "alias  ready   n1     alias of m",
        "other  absent  -      No node.",
    ]
