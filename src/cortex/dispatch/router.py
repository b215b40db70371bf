"""Where a request goes: a pure decision over what is known about its model.

In: a :class:`ModelView`. Out: run it, wait for a load, have it loaded, or refuse with a reason
that a person can act on (``refusals`` words it). No I/O, no clock.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cortex.dispatch import refusals
from cortex.fleet.state import Placed
from cortex.placement.fit import Fit, FitResult, ResidentView
from protocol.errors import WireError
from protocol.fleet import ModelRecord, ModelState


class Run(NamedTuple):
    """The model is ready on a node."""


class Wait(NamedTuple):
    """The model is being loaded on a node."""

    how_far: str = ""
    """The progress of the load, for people."""


class Load(NamedTuple):
    """The model could be loaded on a node."""

    why_not_yet: str = ""
    """What the load waits for, for people."""


class Refuse(NamedTuple):
    """The model cannot be served, and why."""

    error: WireError
    may_change: bool = False
    """Whether waiting a little may help: it was served until a moment ago, or not every node has
    been heard yet."""


Decision = Run | Wait | Load | Refuse

_ON_ITS_WAY = (ModelState.FETCHING, ModelState.LOADING)


class ModelView(NamedTuple):
    """What is known about one model at one moment; for a ready model, *placed* is enough."""

    model: str
    placed: tuple[Placed, ...] = ()
    """Where it is or is on its way, on living nodes."""
    known_models: Callable[[], Sequence[str]] = tuple
    """Lists every model of the fleet and of the catalogue, which takes a while where there are
    many."""
    feasible: FitResult | None = None
    """Where it could be loaded if nothing were in use."""
    lost_node: str = ""
    """The node that had it until a moment ago."""
    is_listed: bool = False
    """Whether it has a profile in the catalogue."""
    is_known: bool = False
    """Whether it has one, or some living node has the model or could load it."""
    is_unsettled: bool = False
    """Whether some node has not been heard yet, or one that could load it is silent."""


def decide(view: ModelView) -> Decision:
    """Decides what a request for the model of *view* should do."""
    model, placed, feasible = view.model, view.placed, view.feasible
    states = {p.record.state for p in placed}
    if ModelState.READY in states:
        return Run()
    on_its_way = [p.record for p in placed if p.record.state in _ON_ITS_WAY]
    if on_its_way:
        return Wait(_how_far(on_its_way[0]))
    if feasible is not None and feasible.fits:
        return Load(_why_not_yet(feasible.fits[0]))
    if placed:
        return Refuse(refusals.not_served_now(model, placed))
    if view.lost_node:
        return Refuse(refusals.node_is_silent(model, view.lost_node), may_change=True)
    if feasible is not None and feasible.misfits and view.is_known:
        error = refusals.fits_nowhere(model, feasible.misfits)
    elif view.is_listed:
        error = refusals.no_node_loads(model)
    else:
        error = refusals.unknown_model(model, view.known_models())
    return Refuse(error, may_change=view.is_unsettled)


def _how_far(record: ModelRecord) -> str:
    progress = record.progress
    if progress is None:
        return f"{record.state} on {record.node}"
    share = f" {progress.done / progress.total:.0%}" if progress.total else ""
    left = progress.seconds_left
    soon = "" if left is None else f", about {left:.0f} s left" if left >= 1 else ", nearly there"
    return f"{record.state} on {record.node}: {progress.stage}{share}{soon}"


def _why_not_yet(fit: Fit) -> str:
    if not fit.victims:
        return f"to be loaded on {fit.node}"
    going = ", ".join(f"{victim.model} ({_in_the_way(victim)})" for victim in fit.victims)
    return f"to be loaded on {fit.node} in place of {going}"


def _in_the_way(victim: ResidentView) -> str:
    """What keeps a model from going at once."""
    if not victim.is_ready:
        return "being loaded or unloaded"
    return "in use" if victim.is_busy else "others may still want it"
