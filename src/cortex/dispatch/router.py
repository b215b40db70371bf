"""Where a request goes: a pure decision over what is known about its model.

In: a :class:`ModelView`. Out: run it, wait for a load, have it loaded, or refuse with a reason
that a person can act on. No I/O, no clock.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from cortex.fleet.state import Placed
from cortex.placement.fit import Fit, FitResult, Misfit, reasons
from protocol.errors import ErrorCode, WireError
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
_RETRY_SECONDS = 5


class ModelView(NamedTuple):
    """What is known about one model at one moment; for a ready model, *placed* is enough."""

    model: str
    placed: tuple[Placed, ...] = ()
    """Where it is or is on its way, on living nodes."""
    known_models: tuple[str, ...] = ()
    """Every model of the fleet and of the catalogue."""
    feasible: FitResult | None = None
    """Where it could be loaded if nothing were in use."""
    lost_node: str = ""
    """The node that had it until a moment ago."""
    is_listed: bool = False
    """Whether it has a profile in the catalogue."""
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
        return Refuse(_why_unavailable(model, placed))
    if view.lost_node:
        error = WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"{model} was on node {view.lost_node}, which has gone silent; no other node has it. "
            "Try again shortly.",
            retry_after_seconds=_RETRY_SECONDS,
        )
        return Refuse(error, may_change=True)
    is_known = view.is_listed or model in view.known_models
    if feasible is not None and feasible.misfits and is_known:
        return Refuse(_nowhere(model, feasible.misfits), may_change=view.is_unsettled)
    if view.is_listed:
        error = WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"{model} is in the catalogue, but no living node can load it. Start a neuron.",
            retry_after_seconds=_RETRY_SECONDS,
        )
        return Refuse(error, may_change=view.is_unsettled)
    return Refuse(_unknown(model, view.known_models), may_change=view.is_unsettled)


def _how_far(record: ModelRecord) -> str:
    progress = record.progress
    if progress is None:
        return f"{record.state} on {record.node}"
    share = f" {progress.done / progress.total:.0%}" if progress.total else ""
    return f"{record.state} on {record.node}: {progress.stage}{share}"


def _why_not_yet(fit: Fit) -> str:
    if not fit.victims:
        return f"to be loaded on {fit.node}"
    going = ", ".join(victim.model for victim in fit.victims)
    return f"to be loaded on {fit.node} in place of {going}"


def _nowhere(model: str, misfits: Sequence[Misfit]) -> WireError:
    """Refuses a model for which the fleet can do nothing by itself."""
    why = reasons(misfits, at_most=4)
    if all(misfit.is_for_ever for misfit in misfits):
        return WireError(
            ErrorCode.MODEL_NOT_FOUND,
            f"No node of this fleet can load {model}. {why} A node with more memory, or a "
            "smaller limit.context or kv_cache_mb in its profile, would help.",
            param="model",
        )
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"{model} cannot be loaded now. {why}",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _why_unavailable(model: str, placed: Sequence[Placed]) -> WireError:
    for record, _ in placed:
        if record.state is ModelState.FAILED and record.error:
            retry = max(1, round(record.retry_seconds)) if record.retry_seconds else 0
            return WireError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{model} could not be loaded on {record.node}: {record.error.message}",
                retry_after_seconds=retry,
            )
    node = placed[0].record.node
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"{model} is {placed[0].record.state} on {node}, and no other node serves it now. Try "
        "again shortly.",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _unknown(model: str, known: Sequence[str]) -> WireError:
    if not known:
        return WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            "No model is available yet, because no neuron has announced one. Start one with "
            "'neuron serve', or wait a moment if the fleet has just started.",
            retry_after_seconds=_RETRY_SECONDS,
        )
    close = difflib.get_close_matches(model, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else _listing(known)
    return WireError(
        ErrorCode.MODEL_NOT_FOUND,
        f"The model {model!r} does not exist in this fleet. {hint}",
        param="model",
    )


def _listing(known: Sequence[str]) -> str:
    shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f"Available: {shown} (GET /v1/models)."
