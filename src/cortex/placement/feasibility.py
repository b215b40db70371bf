"""Tells requests where a model could be loaded: the result of ``fit``, cached for a moment."""

import time
from collections.abc import Callable

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.placement.fit import FitResult, NodeView, could_be_had
from cortex.placement.snapshot import SnapshotBuilder

KEEP_SECONDS = 0.1
"""How long a result is reused; each waiting request asks several times a second."""


class Feasibility:
    """Where every model could be loaded."""

    def __init__(
        self,
        snapshots: SnapshotBuilder,
        fleet: Fleet,
        catalogue: Catalogue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshots = snapshots
        self._fleet = fleet
        self._catalogue = catalogue
        self._clock = clock
        self._answers: dict[str, FitResult | None] = {}
        self._nodes: tuple[NodeView, ...] | None = None
        self._made = float("-inf")
        self._version: object = None

    def of(self, model: str) -> FitResult | None:
        """Returns where *model* could be loaded; None for an unknown model."""
        now, version = self._clock(), self._snapshots.version
        if now - self._made > KEEP_SECONDS or version != self._version:
            self._version = version
            self._answers.clear()
            self._nodes = None
            self._made = now
        if model not in self._answers:
            self._answers[model] = self._answer(model)
        return self._answers[model]

    def _answer(self, model: str) -> FitResult | None:
        if not self._fleet.records(model) and model not in self._catalogue.models:
            return None
        if self._nodes is None:
            self._nodes = self._snapshots.look().nodes
        return could_be_had(self._snapshots.need(model), self._nodes)
