"""The gateways' side of the hand-over stream ``JOBS``: its lanes, and the publishing of jobs.

A lane is one durable consumer for each model and priority. Only gateways create consumers; the
neurons pull from them (``jobs``).
"""

import json
import logging
from collections.abc import Iterable
from typing import Any

from protocol import subjects
from protocol.bus.connection import Bus
from protocol.bus.jobs import MAX_DELIVERIES, PULL_GROUP, STREAM
from protocol.bus.streams import PROBE, StorageError, Stream, checked
from protocol.job import Priority

log = logging.getLogger("bus")

MAX_AGE_SECONDS = 120
"""What nobody takes or reads leaves the stream after this long; every job of a gateway expires
earlier."""
_CONFIRM_SECONDS = 0.5
"""Limit of the wait for a confirmation, which takes a millisecond: what is lost in a restart is
retried soon."""
_ANSWER_SECONDS = 1.0
_MISSING = 10014
"""NATS's code for a consumer that does not exist."""
_OTHER_KIND = 10012
"""NATS's code when a consumer of the name is one that pushes, or cannot be changed into a lane."""
_UNSTATED = {"headers_only": False, "rate_limit_bps": 0, "max_batch": 0, "max_bytes": 0}
"""What every lane leaves at its default; an operator may have changed it."""


class QueueFull(Exception):
    """Raised when the hand-over queue of a model is full."""


class JobLanes:
    """The stream, the lanes of models, and the jobs that go into them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.stream = Stream(bus, CONFIG, f"cortex.job.{PROBE}.low")
        self._has_stream = False
        self._provisioned: set[str] = set()

    async def provision(self) -> None:
        """Creates the stream, once. Raises :class:`StorageError`."""
        if not self._has_stream:
            await self.stream.ensure()
            self._has_stream = True

    async def provision_model(self, model: str) -> None:
        """Creates the consumers of a model, once; idempotent on the server. Raises
        :class:`StorageError`."""
        if model in self._provisioned:
            return
        for priority in Priority:
            name, config = _lane(model, priority)
            body = json.dumps({"stream_name": STREAM, "config": config}).encode()
            create = f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{name}"
            try:
                await self._ask(create, body)
            except StorageError as error:
                if error.code != _OTHER_KIND:
                    raise
                await self.remove([name])
                await self._ask(create, body)
        self._provisioned.add(model)

    async def replace_model(self, model: str) -> None:
        """Puts new consumers in the place of a model's: those there deliver nothing, because
        somebody has paused or edited them. The jobs stay. Raises :class:`StorageError`."""
        await self.remove(subjects.lane_consumer(model, priority) for priority in Priority)
        self.forget_model(model)
        await self.provision_model(model)

    async def does_not_deliver(self, model: str, priority: Priority, sequence: int) -> bool:
        """Whether a lane is missing, paused or edited, or has passed over the job with the
        *sequence* in the stream. Raises :class:`StorageError`."""
        name, wanted = _lane(model, priority)
        found = await self._consumer(name)
        if found is None or found.get("paused"):
            return True
        try:
            config, delivered = found["config"], int(found["delivered"]["stream_seq"])
            wanted |= _UNSTATED
            differs = any((config.get(key) or 0) != (value or 0) for key, value in wanted.items())
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StorageError(f"NATS describes the lane {name} oddly: {error!r}") from None
        return differs or delivered < sequence

    async def is_in_use(self, consumer: str) -> bool:
        """Whether somebody waits for jobs of a lane, or has one, or will get one. Raises
        :class:`StorageError`."""
        found = await self._consumer(consumer) or {}
        return any(found.get(what) for what in ("num_waiting", "num_pending", "num_ack_pending"))

    async def _consumer(self, name: str) -> dict[str, Any] | None:
        """Describes a consumer; None when there is none."""
        try:
            return await self._ask(f"$JS.API.CONSUMER.INFO.{STREAM}.{name}", b"")
        except StorageError as error:
            if error.code == _MISSING:
                return None
            raise

    async def consumers(self) -> set[str]:
        """Lists the consumers that the stream has. Raises :class:`StorageError`."""
        names: set[str] = set()
        while True:
            body = json.dumps({"offset": len(names)}).encode()
            found = await self._ask(f"$JS.API.CONSUMER.NAMES.{STREAM}", body)
            try:
                page = set(map(str, found.get("consumers") or ())) - names
                total = int(found.get("total") or 0)
            except (TypeError, ValueError, OverflowError) as error:
                raise StorageError(f"NATS lists its consumers oddly: {error!r}") from None
            names |= page
            if not page or len(names) >= total:
                return names

    async def remove(self, consumers: Iterable[str]) -> None:
        """Removes consumers, if they are there. Raises :class:`StorageError`."""
        for name in consumers:
            try:
                await self._ask(f"$JS.API.CONSUMER.DELETE.{STREAM}.{name}", b"")
            except StorageError as error:
                if error.code != _MISSING:
                    raise

    def forget(self) -> None:
        """Forgets what was provisioned: the server may be another one, or the stream be gone."""
        self._has_stream = False
        self._provisioned.clear()

    def forget_model(self, model: str) -> None:
        """Forgets that a model has consumers, because some of them are gone."""
        self._provisioned.discard(model)

    async def publish(
        self,
        data: bytes,
        *,
        model: str,
        priority: Priority,
        message_id: str,
        ttl_seconds: int,
    ) -> int:
        """Hands a job over; returns its sequence in the stream.

        Raises :class:`QueueFull` at the stream's bound, and :class:`StorageError` when JetStream
        refuses it or does not confirm it in time. Publishing the same *message_id* again within
        30 s is harmless, so a publish without confirmation may be repeated.
        """
        try:
            answer = await self._ask(
                subjects.job(model, priority),
                data,
                headers={"Nats-Msg-Id": message_id, "Nats-TTL": str(max(1, ttl_seconds))},
                seconds=_CONFIRM_SECONDS,
            )
        except StorageError as error:
            if "per subject" in str(error):  # the code is that of a stream that is full
                raise QueueFull(model) from None
            raise
        return int(answer.get("seq") or 0)

    async def acknowledge(self, ack: str) -> None:
        """Removes a delivered job from the stream: a neuron has it, or refused it for good."""
        if ack.startswith(f"$JS.ACK.{STREAM}."):
            await self._bus.publish(ack, b"+ACK")

    async def _ask(
        self,
        subject: str,
        data: bytes,
        *,
        headers: dict[str, str] | None = None,
        seconds: float = _ANSWER_SECONDS,
    ) -> dict[str, Any]:
        answer = await self._bus.request(subject, data, headers=headers, timeout=seconds)
        if answer is None:
            raise StorageError("JetStream does not answer")
        return checked(answer)


def _lane(model: str, priority: Priority) -> tuple[str, dict[str, object]]:
    """The name and the configuration of a lane's consumer."""
    name = subjects.lane_consumer(model, priority)
    return name, {
        "durable_name": name,
        "name": name,
        "filter_subject": subjects.job(model, priority),
        "ack_policy": "explicit",
        "ack_wait": 1_000_000_000,
        "max_deliver": MAX_DELIVERIES,
        "max_ack_pending": 1024,
        "priority_policy": "prioritized",
        "priority_groups": [PULL_GROUP],
    }


CONFIG: dict[str, object] = {
    "name": STREAM,
    "subjects": [subjects.ALL_JOBS],
    "retention": "workqueue",
    "storage": "file",
    "discard": "new",
    "discard_new_per_subject": True,
    "max_msgs_per_subject": 256,
    "max_bytes": 256 << 20,
    "max_age": MAX_AGE_SECONDS * 1_000_000_000,
    "allow_msg_ttl": True,
    "duplicate_window": 30_000_000_000,
}
