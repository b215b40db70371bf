"""Becoming the owner of a stream that another gateway began.

All neurons are asked who has the job; of several (one may have frozen and thawed since) the latest
attempt counts. That neuron is told to go on for us, under the next attempt's number, which fences
the earlier owner off should it be alive after all.
"""

import re
import time
from typing import NamedTuple

from cortex.identity import GatewayIdentity
from protocol import codec, subjects
from protocol.errors import ErrorCode, FleetError
from protocol.job import Claim, Job, Locate, Located

SEARCH_SECONDS = 2.0
"""A job may be between two neurons: it is looked for again."""
LONG_SEARCH_SECONDS = 8.0
"""While a node is silent that may be back in a moment, and have it."""
_ROUND_SECONDS = 0.3
_JOB_ID = re.compile(r"[0-9a-f]{32}")


class ClaimedStream(NamedTuple):
    """A job that is ours now."""

    job: Job
    node: str


async def claim_stream(
    identity: GatewayIdentity, job_id: str, owner: str, seconds: float
) -> ClaimedStream:
    """Raises ``FleetError(STREAM_GONE)`` when no neuron has it, or not for *owner*."""
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
    raise FleetError(
        ErrorCode.STREAM_GONE,
        f"No node has a stream {job_id[:64]!r} of yours. Streams are kept for 30 s after their end "
        "or after their gateway was lost. Send the request again.",
    )


async def _locate(identity: GatewayIdentity, job_id: str) -> Located | None:
    data = codec.encode(Locate(identity.gateway))
    answers = await identity.bus.ask_all(subjects.locate(job_id), data, seconds=_ROUND_SECONDS)
    found = [codec.read_located(answer) for answer in answers]
    return max(found, key=lambda one: (one.attempt, one.next_index), default=None)
