"""What ``cortex up`` says about models."""

import msgspec

from cortex.api.models import ModelObject
from cortex.up import model_line
from protocol.fleet import ModelState, Progress


def _line(**changes: object) -> str:
    model = ModelObject(
        id="m",
        created=0,
        max_model_len=None,
        display_name="m",
        state=ModelState.LOADING,
        nodes=["n1", "n2"],
        error=None,
        progress=None,
        root="m",
    )
    model = msgspec.structs.replace(model, **changes)
    return model_line(msgspec.json.decode(msgspec.json.encode(model)))


def test_states_progress_and_errors() -> None:
    assert _line() == "m on n1, n2: loading"
    assert _line(progress=Progress("reading", 449, 1000)) == "m on n1, n2: loading, reading 40 %"
    assert _line(progress=Progress("resolving", 0, 1, "steps")) == "m on n1, n2: loading, resolving"
    assert _line(state=ModelState.FAILED, error="no room") == "m on n1, n2: failed: no room"
