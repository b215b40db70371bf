"""What a client is told when its request cannot be served: the wording of every refusal.

Each function says what happened, why with the numbers, and what to do. Who refuses, and when, is
decided elsewhere: ``router`` (no node serves the model), ``wait_budget`` (it took too long),
``request_queue`` and ``hand_over`` (there is no room), ``attempts`` (neurons died of it). What is
wrong with the request itself is worded where it is read, in ``api.dialects.request_fields``. Pure.
"""

import difflib
from collections.abc import Sequence

from cortex.fleet.state import Placed
from cortex.placement.fit import Misfit, reasons
from protocol.errors import ErrorCode, WireError
from protocol.fleet import ModelState

_RETRY_SECONDS = 5


# -- no node serves the model ------------------------------------------------------------------


MAX_ALIKE = 200
"""How many names, and how many characters of one, are looked at to find what was meant."""


def unknown_model(model: str, known: Sequence[str]) -> WireError:
    """Nobody has heard of the model; *known* are those of the fleet."""
    if not known:
        return WireError(
            ErrorCode.MODEL_UNAVAILABLE,
            "No model is available yet, because no neuron has announced one. Start one with "
            "'neuron serve', or wait a moment if the fleet has just started.",
            retry_after_seconds=_RETRY_SECONDS,
        )
    alike = [name for name in known if abs(len(name) - len(model)) <= len(model) // 2 + 1]
    close = difflib.get_close_matches(model[:MAX_ALIKE], alike[:MAX_ALIKE], n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else _listing(known)
    return WireError(
        ErrorCode.MODEL_NOT_FOUND,
        f"The model {model!r} does not exist in this fleet. {hint}",
        param="model",
    )


def _listing(known: Sequence[str]) -> str:
    shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f"Available: {shown} (GET /v1/models)."


def fits_nowhere(model: str, misfits: Sequence[Misfit]) -> WireError:
    """The fleet can do nothing by itself to load the model."""
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


def no_node_loads(model: str) -> WireError:
    """The model has a profile in the catalogue, but no living node could load it."""
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"{model} is in the catalogue, but no living node can load it. Start a neuron.",
        retry_after_seconds=_RETRY_SECONDS,
    )


def node_is_silent(model: str, node: str) -> WireError:
    """The one node that had the model was there until a moment ago."""
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"{model} was on node {node}, which has gone silent; no other node has it. "
        "Try again shortly.",
        retry_after_seconds=_RETRY_SECONDS,
    )


def not_served_now(model: str, placed: Sequence[Placed]) -> WireError:
    """The nodes that have the model do not serve it: a load failed, or it is being unloaded."""
    for record, _ in placed:
        if record.state is ModelState.FAILED and record.error:
            retry = max(1, round(record.retry_seconds)) if record.retry_seconds else 0
            again = (
                f" It may be tried again within {retry} s, and at once when its files change or an "
                "operator loads it."
            )
            return WireError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{model} could not be loaded on {record.node}: {_sentence(record.error.message)}"
                f"{again if retry else ''}",
                retry_after_seconds=retry,
            )
    record = placed[0].record
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"{model} is {record.state} on {record.node}, and no other node serves it now. Try "
        "again shortly.",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def no_node_renders(model: str) -> WireError:
    """No node answered a question about a prompt."""
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"No node that has the files of {model} answered. Try again shortly.",
        retry_after_seconds=_RETRY_SECONDS,
    )


# -- it took too long --------------------------------------------------------------------------


def rendering_took_too_long(model: str, node: str, size: int, seconds: float) -> WireError:
    """A node is there, and has not answered a question about a long prompt."""
    return WireError(
        ErrorCode.TIMEOUT,
        f"Node {node} has not turned the prompt of {size:,} bytes into tokens of {model} within "
        f"{seconds:.0f} s. Send less text, or try again when the node is less busy.",
    )


def slots_stayed_busy(model: str, seconds: float) -> WireError:
    """No neuron took the request, although the model is ready."""
    return WireError(
        ErrorCode.TIMEOUT,
        f"No neuron took the request within {seconds:.0f} s: all slots of {model} are busy. Try "
        "again, or add a node.",
        retry_after_seconds=5,
    )


def load_took_too_long(model: str, seconds: float) -> WireError:
    """The model is still being loaded."""
    return WireError(
        ErrorCode.TIMEOUT,
        f"{model} was still not loaded after {seconds:.0f} s. See the log of the node that loads "
        "it, or try again later.",
        retry_after_seconds=30,
    )


def no_room_was_made(model: str, seconds: float, why_not_yet: str) -> WireError:
    """The load has not begun; *why_not_yet* is what it waits for."""
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"No room was found for {model} within {seconds:.0f} s: it is {why_not_yet}. Try again, "
        "or add memory.",
        retry_after_seconds=10,
    )


# -- there is no room for the request ----------------------------------------------------------


def queue_is_full(
    model: str, *, waiting: int, own: int, max_waiting: int, max_of_tenant: int
) -> WireError:
    """Too many requests wait at this gateway, of all callers or of this one."""
    return WireError(
        ErrorCode.OVERLOADED,
        f"{model} has {waiting} requests waiting at this gateway, {own} of them yours; its limits "
        f"are {max_waiting} in total and {max_of_tenant} per caller. Try again shortly.",
        retry_after_seconds=2,
    )


def lane_is_full(model: str) -> WireError:
    """NATS holds as many jobs for the model as it may."""
    return WireError(
        ErrorCode.OVERLOADED,
        f"The hand-over queue of {model} is full. Try again shortly.",
        retry_after_seconds=2,
    )


def job_is_too_large(size: int, limit: int) -> WireError:
    """The job, with the room that its answer needs, does not fit through the bus (in bytes)."""
    return WireError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"The request and room for its answer take {size:,} bytes on the bus, more than its "
        f"limit of {limit:,}. Send less text, or set a smaller max_tokens.",
    )


def answer_is_too_large(choices: int, total: int, limit: int) -> WireError:
    """The prompts of all choices together are more than one request may have (in characters)."""
    return WireError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"Each of the {choices} choices reads its whole prompt, {total:,} characters in all; at "
        f"most {limit:,} are read for one request. Ask for fewer choices (n), or send less text.",
    )


def prompt_is_too_large(size: int, limit: int) -> WireError:
    """A question about a prompt does not fit through the bus (in bytes)."""
    return WireError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"The request takes {size:,} bytes on the bus, more than its limit of "
        f"{limit:,}. Send less text.",
    )


# -- something failed --------------------------------------------------------------------------


def bus_is_silent(seconds: float) -> WireError:
    """The gateway cannot reach anybody."""
    return WireError(
        ErrorCode.BUS_UNAVAILABLE,
        f"The gateway has heard nothing from NATS for {seconds:.0f} s. Try again shortly.",
        retry_after_seconds=2,
    )


def jobs_cannot_be_stored(why: str) -> WireError:
    """NATS is there, and cannot store anything; *why* is its own reason."""
    return WireError(
        ErrorCode.BUS_UNAVAILABLE,
        f"NATS cannot store requests: {why}. The gateway tries again all the time; so should you, "
        "shortly.",
        retry_after_seconds=2,
    )


def job_was_not_stored(seconds: float, why: str) -> WireError:
    """NATS is there, but does not keep the job; *why* is what it said last."""
    return WireError(
        ErrorCode.BUS_UNAVAILABLE,
        f"NATS did not store the request within {seconds:.0f} s: {why}. Try again shortly.",
        retry_after_seconds=2,
    )


def nobody_reads_it(model: str, times: int) -> WireError:
    """The job vanished from its stream again and again, as one that no neuron can read does."""
    return WireError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"The request was handed over {times} times for {model}, and no neuron accepted it: they "
        "may be of a version that cannot read it. See their logs.",
        retry_after_seconds=5,
    )


def engines_die_of_it(deaths: int, node: str, last: str) -> WireError:
    """The request is suspected of ending engines; *last* says how the last one ended, on *node*."""
    return WireError(
        ErrorCode.POISON,
        f"{deaths} engines ended while they processed this request, the last one on {node}: {last} "
        "It will not be tried again. See that node's log, and send a shorter or different request.",
    )


def no_such_stream(stream: str, kept_seconds: float) -> WireError:
    """No neuron has the stream that a client wants to go on reading."""
    return WireError(
        ErrorCode.STREAM_GONE,
        f"No node has your stream {stream[:64]!r}. Streams are kept for {kept_seconds:.0f} s "
        "after they end or after their gateway was lost. Send the request again.",
    )


def gateway_failed() -> WireError:
    """A bug; the log has the details."""
    return WireError(ErrorCode.INTERNAL, "The gateway failed; see its log.")
