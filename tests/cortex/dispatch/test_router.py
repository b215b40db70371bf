"""Routing decisions, and the sentences that people get."""

from typing import Any

import msgspec

from cortex.dispatch.router import Load, ModelView, Refuse, Run, Wait, decide
from cortex.fleet.state import Placed
from cortex.placement.fit import Fit, FitResult, Misfit, ResidentView
from protocol.errors import ErrorCode, WireError
from protocol.fleet import ModelLoad, ModelRecord, ModelState, Progress


def placed(state: ModelState, node: str = "n1", error: WireError | None = None) -> Placed:
    record = ModelRecord(
        node=node, instance="i", model="m", state=state, error=error, retry_seconds=4.0
    )
    return Placed(record, ModelLoad())


def view(model: str, where: list[Placed], known_models: list[str], **known: Any) -> ModelView:
    known.setdefault("is_known", model in known_models)
    return ModelView(model, tuple(where), lambda: known_models, **known)


def test_ready_anywhere_runs() -> None:
    assert decide(view("m", [placed(ModelState.FAILED), placed(ModelState.READY)], ["m"])) == Run()


def test_a_load_under_way_is_waited_for() -> None:
    for state in (ModelState.LOADING, ModelState.FETCHING):
        decision = decide(view("m", [placed(ModelState.FAILED), placed(state)], ["m"]))
        assert decision == Wait(f"{state} on n1")


def test_a_failed_load_is_refused_with_its_reason() -> None:
    error = WireError(ErrorCode.MODEL_UNAVAILABLE, "model.safetensors is truncated")
    decision = decide(view("m", [placed(ModelState.FAILED, "gpu-3", error)], ["m"]))
    assert isinstance(decision, Refuse)
    assert decision.error.code is ErrorCode.MODEL_UNAVAILABLE
    assert decision.error.message == (
        "m could not be loaded on gpu-3: model.safetensors is truncated. It may be tried again "
        "within 4 s, and at once when its files change or an operator loads it."
    )
    assert decision.error.retry_after_seconds == 4


def test_an_unknown_model_names_the_closest() -> None:
    decision = decide(view("cortex-demmo", [], ["cortex-demo", "Qwen/Qwen3-8B"]))
    assert isinstance(decision, Refuse)
    assert decision.error.code is ErrorCode.MODEL_NOT_FOUND
    assert "Did you mean 'cortex-demo'?" in decision.error.message


def test_an_unknown_model_without_a_close_name_gets_the_list() -> None:
    decision = decide(view("gpt-4o", [], [f"model-{i}" for i in range(12)]))
    assert isinstance(decision, Refuse)
    assert "Available: model-0" in decision.error.message
    assert "…" in decision.error.message


def test_an_empty_fleet_may_be_starting() -> None:
    decision = decide(view("m", [], []))
    assert isinstance(decision, Refuse)
    assert decision.error.code is ErrorCode.MODEL_UNAVAILABLE
    assert decision.error.retry_after_seconds > 0


def test_what_was_served_a_moment_ago_is_worth_waiting_for() -> None:
    decision = decide(view("m", [], ["other"], lost_node="gpu-3"))
    assert isinstance(decision, Refuse)
    assert decision.may_change
    assert decision.error.code is ErrorCode.MODEL_UNAVAILABLE
    assert "gpu-3" in decision.error.message


def test_a_new_gateway_does_not_know_yet_what_it_does_not_know() -> None:
    decision = decide(view("m", [], [], is_unsettled=True))
    assert isinstance(decision, Refuse)
    assert decision.may_change


FIT = Fit("n2", (0,), (), 0, has_files=True, busyness=0.0)


def test_what_could_be_loaded_is_wanted() -> None:
    could = FitResult((FIT,), ())
    assert decide(view("m", [], ["m"], feasible=could)) == Load("to be loaded on n2")
    assert isinstance(decide(view("m", [placed(ModelState.DRAINING)], ["m"], feasible=could)), Load)
    assert isinstance(
        decide(view("m", [placed(ModelState.FAILED)], ["m"], feasible=could)), Load
    ), "another node may do better"
    assert decide(view("m", [placed(ModelState.READY)], ["m"], feasible=could)) == Run()
    victims = (ResidentView("x", (0,), 1, running=1), ResidentView("y", (0,), 1))
    full = FitResult((FIT._replace(victims=victims),), ())
    assert decide(view("m", [], ["m"], feasible=full)) == Load(
        "to be loaded on n2 in place of x (in use), y (others may still want it)"
    )


def test_too_large_for_every_node_is_a_refusal_with_the_numbers() -> None:
    why = "it takes 1 device of 90.0 GiB, and 0 of this node's are that large"
    could = FitResult((), (Misfit("n1", why, is_for_ever=True),))
    decision = decide(view("m", [], ["m"], feasible=could))
    assert isinstance(decision, Refuse)
    assert decision.error.code is ErrorCode.MODEL_NOT_FOUND
    assert f"n1: {why}." in decision.error.message
    assert "would help" in decision.error.message


def test_what_is_in_the_way_for_now_is_said() -> None:
    could = FitResult((), (Misfit("n1", "pinned: x"), Misfit("n2", "too small", is_for_ever=True)))
    decision = decide(view("m", [], ["m"], feasible=could))
    assert isinstance(decision, Refuse)
    assert decision.error.code is ErrorCode.MODEL_UNAVAILABLE
    assert decision.error.message == "m cannot be loaded now. n1: pinned: x; n2: too small."
    assert decision.error.retry_after_seconds > 0


def test_how_far_a_load_is() -> None:
    record = placed(ModelState.LOADING).record
    for left, words in ((None, ""), (3.4, ", about 3 s left"), (0.2, ", nearly there")):
        progress = Progress("reading", 2, 5, seconds_left=left)
        reading = msgspec.structs.replace(record, progress=progress)
        assert decide(view("m", [Placed(reading, ModelLoad())], ["m"])) == Wait(
            f"loading on n1: reading 40%{words}"
        )
