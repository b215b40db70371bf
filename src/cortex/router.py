"""Where a request goes: a pure decision over the picture of the fleet.

In: the model's name and what is known about it. Out: run it, wait for it, or refuse with a reason
that a person can act on. No I/O, no clock.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from cortex.fleet import Placed
from protocol.errors import ErrorCode, WireError
from protocol.fleet import ModelState


class Run(NamedTuple):
    """A node is ready for this model."""


class Wait(NamedTuple):
    """A node is getting ready for it."""


class Refuse(NamedTuple):
    """It cannot be served, and why."""

    error: WireError
    may_change: bool = False
    """It could be served until a moment ago, or the picture is not complete yet: it is worth
    waiting a little."""


Decision = Run | Wait | Refuse

_ON_ITS_WAY = (ModelState.FETCHING, ModelState.LOADING)
_RETRY_SECONDS = 5


def decide(
    model: str,
    placed: Sequence[Placed],
    known_models: Sequence[str],
    *,
    lost_node: str = "",
    is_listed: bool = False,
    is_new: bool = False,
) -> Decision:
    """*placed*: where the model is, on living nodes; *known_models*: all of the fleet's;
    *lost_node* had the model until a moment ago; *is_listed*: it has a profile in the catalogue;
    *is_new*: not everybody may have been heard."""
    states = {p.record.state for p in placed}
    if ModelState.READY in states:
        return Run()
    if states & set(_ON_ITS_WAY):
        return Wait()
    if placed:
        return Refuse(_why_unavailable(model, placed))
    if lost_node:
        error = WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"{model} was on node {lost_node}, which is not heard any more; no other node has it.",
            retry_after_seconds=_RETRY_SECONDS,
        )
        return Refuse(error, may_change=True)
    if is_listed:
        error = WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"{model} is in the catalogue, and no node has it. Start a neuron with "
            f"--model {model}.",
            retry_after_seconds=_RETRY_SECONDS,
        )
        return Refuse(error, may_change=is_new)
    return Refuse(_unknown(model, known_models), may_change=is_new)


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
        f"{model} is {placed[0].record.state} on {node}; no other node serves it now.",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _unknown(model: str, known: Sequence[str]) -> WireError:
    if not known:
        return WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            "No model is available yet: no neuron has announced one. Start one with "
            "'neuron serve', or wait a moment when the fleet has just started.",
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
