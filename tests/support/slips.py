"""What a hand at the ``nats`` command can do to a fleet's streams, generated from what is there."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from protocol import keys, subjects
from protocol.bus import Bus
from protocol.bus.jobs import STREAM

GARBAGE = {
    "words": b"not JSON at all",
    "empty object": b"{}",
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "wrong types": b'{"instance":1,"node":[],"model":{},"state":"ready","models":3}',
}
EDITS: tuple[dict[str, Any], ...] = (
    {"retention": "interest"},
    {"retention": "workqueue"},
    {"retention": "limits"},
    {"discard": "old"},
    {"discard": "new", "discard_new_per_subject": True, "max_msgs_per_subject": 1},
    {"max_msgs": 1},
    {"max_msgs_per_subject": 1},
    {"max_msgs_per_subject": -1},
    {"max_bytes": 1000},
    {"max_msg_size": 10},
    {"max_consumers": 1},
    {"max_age": 200_000_000, "duplicate_window": 200_000_000},
    {"duplicate_window": 100_000_000},
    {"subjects": ["elsewhere"]},
    {"subject_transform": {"src": ">", "dest": "elsewhere.>"}},
    {"republish": {"src": ">", "dest": "elsewhere.>"}},
    {"republish": None},
    {"sources": [{"name": STREAM}]},
    {"sources": [{"name": "KV_cortex_nodes"}]},
    {"consumer_limits": {"inactive_threshold": 1_000_000_000, "max_ack_pending": 1}},
    {"no_ack": True},
    {"deny_delete": True},
    {"deny_delete": False},
    {"deny_purge": True},
    {"allow_rollup_hdrs": False},
    {"allow_rollup_hdrs": True},
    {"allow_direct": False},
    {"allow_msg_ttl": False},
    {"subject_delete_marker_ttl": 1_000_000_000},
    {"allow_atomic": True},
    {"allow_msg_counter": True},
    {"allow_msg_schedules": True},
    {"mirror_direct": True},
    {"first_seq": 1_000_000},
    {"compression": "s2"},
    {"storage": "memory"},
    {"placement": {"tags": ["nowhere"]}},
    {"metadata": {"owner": "somebody"}},
)
"""What a stream's configuration may be changed to, as far as the server lets it."""
KINDS = (
    *(f"{name}: delete the bucket" for name in keys.BUCKETS),
    *(f"{name}: purge the bucket" for name in keys.BUCKETS),
    *(f"{name}: let everything expire" for name in keys.BUCKETS),
    *(f"{name}: purge a key" for name in keys.BUCKETS),
    *(f"{name}: delete a key" for name in keys.BUCKETS),
    *(f"{name}: overwrite a key" for name in keys.BUCKETS),
    *(f"{name}: edit" for name in (STREAM, *(f"KV_{name}" for name in keys.BUCKETS))),
    *(f"{STREAM}: {what}" for what in ("delete", "purge", "seal", "one message at most")),
    *(f"{STREAM}: {what} a consumer" for what in ("delete", "pause")),
)

SHORT = {"max_age": 200_000_000, "duplicate_window": 200_000_000}


class Slip(NamedTuple):
    """One command."""

    kind: str
    """One of ``KINDS``."""
    what: str
    do: Callable[[], Awaitable[None]]


class Nats:
    """The commands, on one connection."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def api(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body else b""
        answer = await self._bus.request(f"$JS.API.{subject}", data, timeout=2)
        assert answer is not None, f"{subject}: no answer"
        found: dict[str, Any] = json.loads(answer)
        return found

    async def edit(self, stream: str, **changes: Any) -> None:
        found = await self._edited(stream, changes)
        assert "error" not in found, found

    async def edit_if_allowed(self, stream: str, **changes: Any) -> None:
        await self._edited(stream, changes)

    async def _edited(self, stream: str, changes: dict[str, Any]) -> dict[str, Any]:
        config = (await self.api(f"STREAM.INFO.{stream}"))["config"]
        return await self.api(f"STREAM.UPDATE.{stream}", {**config, **changes})

    async def keys_of(self, bucket: str) -> list[str]:
        body = {"subjects_filter": subjects.kv_write(bucket, ">")}
        info = await self.api(f"STREAM.INFO.KV_{bucket}", body)
        prefix = subjects.kv_write(bucket, "")
        found = (subject.removeprefix(prefix) for subject in info["state"].get("subjects", ()))
        return sorted(key for key in found if not key.startswith("="))

    async def put(self, bucket: str, key: str, value: bytes, operation: str = "") -> None:
        headers = {"KV-Operation": operation} if operation else {}
        if operation == "PURGE":
            headers["Nats-Rollup"] = "sub"
        subject = subjects.kv_write(bucket, key)
        answer = await self._bus.request(subject, value, headers=headers or None)
        assert answer is not None, subject

    async def is_whole(self) -> bool:
        """Whether every stream is there."""
        names = [STREAM, *(f"KV_{bucket}" for bucket in keys.BUCKETS)]
        infos = [await self.api(f"STREAM.INFO.{name}") for name in names]
        return not any("error" in info for info in infos)

    # -- everything that can be done now -------------------------------------------------------

    async def slips(self) -> AsyncIterator[Slip]:
        """Each command that makes sense now."""
        for bucket in keys.BUCKETS:
            stream = f"KV_{bucket}"
            yield self._slip(f"{bucket}: delete the bucket", self.api, f"STREAM.DELETE.{stream}")
            yield self._slip(f"{bucket}: purge the bucket", self.api, f"STREAM.PURGE.{stream}")
            yield self._slip(f"{bucket}: let everything expire", self.edit, stream, **SHORT)
            for key in await self.keys_of(bucket):
                yield self._slip(f"{bucket}: purge a key", self.put, bucket, key, b"", "PURGE")
                yield self._slip(f"{bucket}: delete a key", self.put, bucket, key, b"", "DEL")
                for garbage in GARBAGE.values():
                    yield self._slip(f"{bucket}: overwrite a key", self.put, bucket, key, garbage)
        yield self._slip(f"{STREAM}: delete", self.api, f"STREAM.DELETE.{STREAM}")
        yield self._slip(f"{STREAM}: purge", self.api, f"STREAM.PURGE.{STREAM}")
        yield self._slip(f"{STREAM}: seal", self.edit, STREAM, sealed=True)
        yield self._slip(f"{STREAM}: one message at most", self.edit, STREAM, max_msgs=1)
        for stream in (STREAM, *(f"KV_{bucket}" for bucket in keys.BUCKETS)):
            for changes in EDITS:
                yield self._slip(f"{stream}: edit", self.edit_if_allowed, stream, **changes)
        for name in (await self.api(f"CONSUMER.NAMES.{STREAM}"))["consumers"] or ():
            yield self._slip(
                f"{STREAM}: delete a consumer", self.api, f"CONSUMER.DELETE.{STREAM}.{name}"
            )
            pause = {"pause_until": "2099-01-01T00:00:00Z"}
            yield self._slip(
                f"{STREAM}: pause a consumer", self.api, f"CONSUMER.PAUSE.{STREAM}.{name}", pause
            )

    def _slip(self, kind: str, do: Callable[..., Awaitable[Any]], *args: Any, **more: Any) -> Slip:
        async def doing() -> None:
            await do(*args, **more)

        shown = " ".join(str(part)[:40] for part in (*args, *more.items()))
        return Slip(kind, f"{kind} ({shown})", doing)
