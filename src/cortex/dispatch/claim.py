"""Claims a stream that another gateway began.

All neurons are asked who has the job; if several answer (one may have frozen and thawed since), the
latest attempt counts. That neuron is told to continue for us under the next attempt number, which
fences off the earlier owner in case it is still alive.
"""

import re
import time
from typing import NamedTuple

from protocol import codec, subjects
from protocol.bus import Bus
from protocol.errors import ErrorCode, FleetError
from protocol.job import Claim, Job, Locate, Located

SEARCH_SECONDS = 2.0
"""How long a job is looked for, as it may be moving between two neurons."""
LONG_SEARCH_SECONDS = 8.0
"""How long it is looked for while a node is silent that may soon be back, with the job."""
_ROUND_SECONDS = 0.3
_JOB_ID = re.compile(r"[0-9a-f]{32}")


class ClaimedStream(NamedTuple):
    """A job that this gateway now owns."""

    job: Job
    node: str


async def claim_stream(
    bus: Bus, gateway: str, job_id: str, owner: str, seconds: float
) -> ClaimedStream:
    """Claims a job; raises ``FleetError(STREAM_GONE)`` when no neuron has it, or none for
    *owner*."""
    deadline = time.monotonic() + seconds
    while _JOB_ID.fullmatch(job_id) and time.monotonic() < deadline:
        found = await _find(bus, gateway, job_id)
        if found is not None:
            take = codec.encode(Claim(gateway, found.attempt + 1, owner))
            answer = await bus.request(subjects.claim(found.node, job_id), take, timeout=1.0)
            job = codec.read_taken(answer).job if answer else None
            if job is not None:
                return ClaimedStream(job, found.node)
    raise FleetError(
        ErrorCode.STREAM_GONE,
        f"No node has your stream {job_id[:64]!r}. Streams are kept for 30 s after they end "
        "or after their gateway was lost. Send the request again.",
    )


async def _find(bus: Bus, gateway: str, job_id: str) -> Located | None:
    data = codec.encode(Locate(gateway))
    answers = await bus.ask_all(subjects.locate(job_id), data, seconds=_ROUND_SECONDS)
    found = [codec.read_located(answer) for answer in answers]
    return max(found, key=lambda one: (one.attempt, one.next_index), default=None)
