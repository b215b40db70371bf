"""Claims a stream that another gateway began.

All neurons are asked who has the job; if several answer (one may have frozen and thawed since), the
latest attempt counts. That neuron is told to continue for us under the next attempt number, which
fences off the earlier owner in case it is still alive.
"""

import re
import time
from typing import NamedTuple

from cortex.dispatch import refusals
from cortex.identity import GatewayIdentity
from protocol import codec, subjects
from protocol.errors import FleetError
from protocol.job import Claim, Job, Locate, Located

_ROUND_SECONDS = 0.3
_JOB_ID = re.compile(r"[0-9a-f]{32}")


class ClaimedStream(NamedTuple):
    """A job that this gateway now owns."""

    job: Job
    node: str


async def claim_stream(
    identity: GatewayIdentity, job_id: str, owner: str, *, is_missed: bool
) -> ClaimedStream:
    """Makes this gateway the owner of a stream. Raises ``FleetError(STREAM_GONE)`` when no neuron
    has it, or none for *owner*. *is_missed* says that a node that may have it is silent, and may
    soon be back."""
    timing = identity.timing
    seconds = timing.long_search_seconds if is_missed else timing.search_seconds
    deadline = time.monotonic() + seconds
    while _JOB_ID.fullmatch(job_id) and time.monotonic() < deadline:
        found = await _locate(identity, job_id)
        if found is not None:
            claim = codec.encode(Claim(identity.gateway, found.attempt + 1, owner))
            answer = await identity.bus.request(
                subjects.claim(found.node, job_id), claim, timeout=1.0
            )
            job = codec.read_taken(answer).job if answer else None
            if job is not None:
                return ClaimedStream(job, found.node)
    raise FleetError.of(refusals.no_such_stream(job_id, timing.kept_seconds))


async def _locate(identity: GatewayIdentity, job_id: str) -> Located | None:
    data = codec.encode(Locate(identity.gateway))
    answers = await identity.bus.ask_all(subjects.locate(job_id), data, seconds=_ROUND_SECONDS)
    found = [codec.read_located(answer) for answer in answers]
    return max(found, key=lambda one: (one.attempt, one.next_index), default=None)
