"""Becoming the owner of a stream that another gateway began.

All neurons are asked who has the job; of several (one may have frozen and thawed since) the latest
attempt counts. That neuron is told to go on for us, under the next attempt's number, which fences
the earlier owner off should it be alive after all.
"""

import re
import time
from typing import NamedTuple

from protocol import codec, subjects
from protocol.bus import Bus
from protocol.errors import ErrorCode, FleetError
from protocol.job import Find, Found, Job, Take
from protocol.timing import Timing

_ROUND_SECONDS = 0.3
_JOB_ID = re.compile(r"[0-9a-f]{32}")


class TakenUp(NamedTuple):
    """A job that is ours now."""

    job: Job
    node: str


async def take_up(
    bus: Bus, gateway: str, job_id: str, owner: str, timing: Timing, *, is_missed: bool
) -> TakenUp:
    """Raises ``FleetError(STREAM_GONE)`` when no neuron has it, or not for *owner*. *is_missed*: a
    node is silent that may be back in a moment, and have it."""
    seconds = timing.long_search_seconds if is_missed else timing.search_seconds
    deadline = time.monotonic() + seconds
    while _JOB_ID.fullmatch(job_id) and time.monotonic() < deadline:
        found = await _find(bus, gateway, job_id)
        if found is not None:
            take = codec.encode(Take(gateway, found.attempt + 1, owner))
            answer = await bus.request(subjects.take(found.node, job_id), take, timeout=1.0)
            job = codec.read_taken(answer).job if answer else None
            if job is not None:
                return TakenUp(job, found.node)
    raise FleetError(
        ErrorCode.STREAM_GONE,
        f"No node has a stream {job_id[:64]!r} of yours. Streams are kept for "
        f"{timing.kept_seconds:.0f} s after their end or after their gateway was lost. Send the "
        "request again.",
    )


async def _find(bus: Bus, gateway: str, job_id: str) -> Found | None:
    data = codec.encode(Find(gateway))
    answers = await bus.ask_all(subjects.find(job_id), data, seconds=_ROUND_SECONDS)
    found = [codec.read_found(answer) for answer in answers]
    return max(found, key=lambda one: (one.attempt, one.next_index), default=None)
