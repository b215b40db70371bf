"""What the router decides for each model right now, and which models requests ask for in vain.

The one place that gathers what the pure router needs: the fleet, the catalogue, and where a model
could be loaded.
"""

from collections.abc import Callable

from cortex.dispatch import router
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.placement.demand_writer import Unplaced, WaitingRequests
from cortex.placement.fit import FitResult
from protocol.fleet import ModelState

Feasible = Callable[[str], FitResult | None]
"""Returns where a model could be loaded; None for an unknown model."""


class Decisions:
    """Applies the router to this gateway's live view of the fleet."""

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        *,
        feasible: Feasible = lambda _: None,
        on_wanted: Callable[[], None] = lambda: None,
    ) -> None:
        """Calls *on_wanted* when a request asks for a model that has to be loaded."""
        self._fleet = fleet
        self._catalogue = catalogue
        self._feasible = feasible
        self._on_wanted = on_wanted
        self._unplaced = Unplaced()

    def view_of(self, model: str) -> router.ModelView:
        """Gathers everything that the router may ask about *model*."""
        placed = tuple(self._fleet.placed(model))
        if any(p.record.state is ModelState.READY for p in placed):
            # nothing else matters, and gathering it is expensive
            return router.ModelView(model, placed)
        return router.ModelView(
            model,
            placed,
            known_models=self._known_models,
            feasible=self._feasible(model),
            lost_node=self._fleet.remembers(model),
            is_listed=model in self._catalogue,
            is_known=self.is_known(model),
            is_unsettled=self._fleet.is_unsettled or self._fleet.misses(model),
        )

    def is_known(self, model: str) -> bool:
        """Whether a model has a profile, or some living node has it or could load it."""
        return model in self._catalogue or model in self._fleet

    def _known_models(self) -> tuple[str, ...]:
        return (*self._fleet.models(), *self._catalogue.models)

    def decide(self, model: str) -> router.Decision:
        """Decides what a request for *model* should do now."""
        return router.decide(self.view_of(model))

    def decide_for_request(self, model: str) -> router.Decision:
        """Decides on behalf of a request, and lets the placer know when it needs a load."""
        decision = self.decide(model)
        if isinstance(decision, router.Load) and self._unplaced.asked_for(model):
            self._on_wanted()
        return decision

    def demand_changed(self) -> None:
        """Tells the placer's side that fewer requests wait than a moment ago."""
        self._on_wanted()

    def unplaced(self) -> dict[str, WaitingRequests]:
        """Lists models that were asked for a moment ago and are ready nowhere."""
        return self._unplaced.waiting(without=self._fleet.ready)
