"""What is gathered for a decision: as much as it needs."""

import pytest

from cortex.dispatch.admission import Admission
from cortex.dispatch.decisions import Decisions
from cortex.dispatch.router import Load, Refuse
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.placement.fit import Fit, FitResult
from protocol import codec
from protocol.catalogue import CatalogueRecord, Profile
from protocol.generate import GenerateRequest
from protocol.job import Priority
from protocol.names import token


def catalogue_of(*models: str) -> Catalogue:
    made = Catalogue()
    for model in models:
        record = CatalogueRecord("i", Profile(model))
        made.key_changed(token(model), codec.encode(record))
    return made


def test_all_models_are_listed_only_for_who_asks_for_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed: list[Fleet] = []

    def models(fleet: Fleet) -> list[str]:
        listed.append(fleet)
        return ["a"]

    monkeypatch.setattr(Fleet, "models", models)
    fit = Fit("n1", (0,), victims=(), left_bytes=0, has_files=True, busyness=0.0)
    fits = FitResult(fits=(fit,), misfits=())
    decisions = Decisions(Fleet(), catalogue_of("a"), feasible=lambda _: fits)
    for _ in range(10):
        assert isinstance(decisions.decide("a"), Load)
    assert not listed
    decision = Decisions(Fleet(), catalogue_of("a")).decide("b")
    assert isinstance(decision, Refuse)
    assert "Did you mean" in decision.error.message or "Available: a" in decision.error.message
    assert listed


def test_names_that_no_model_has_are_forgotten() -> None:
    fleet = Fleet()
    admission = Admission(fleet, Decisions(fleet, catalogue_of("a")))
    for number in range(100):
        ticket = admission.admit(GenerateRequest(f"made up {number}"), "t", Priority.NORMAL)
        ticket.cancel()
    waiting = admission.admit(GenerateRequest("waited for"), "t", Priority.NORMAL)
    admission.update_room(1)
    assert list(admission._queues) == ["waited for"]
    assert list(admission._clients._last_uses) == []
    waiting.cancel()
    admission.update_room(1)
    assert not admission._queues


def test_names_are_gathered_when_they_are_needed() -> None:
    names = {f"m{number}": (f"alias-{number}", f"any-{number}-*") for number in range(2_000)}
    catalogue = Catalogue()
    for model, aliases in names.items():
        record = CatalogueRecord("i", Profile(model, aliases=aliases))
        catalogue.key_changed(token(model), codec.encode(record))
    assert catalogue._names_of == 0, "nobody has asked yet"
    assert catalogue.resolve("alias-7", ()) == "m7"
    assert catalogue.resolve("any-7-x", ()) == "m7"
    assert len(catalogue.names) == 2_000
