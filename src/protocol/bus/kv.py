"""Writes KV keys.

It avoids nats-py's KeyValue: its ``put`` has no TTL, and its ``get`` and ``create`` are wrong for
expired keys (2.16). A KV put is a publish on ``$KV.<bucket>.<key>`` with the TTL as a header; the
TTL belongs to the value, so every renewal carries it again.
"""

import base64
import json
import logging
from typing import NamedTuple

from protocol import subjects
from protocol.bus.connection import Bus
from protocol.bus.streams import PROBE, StorageError, Stream, checked

log = logging.getLogger("bus")

_MARKER_SECONDS = 60
"""How long the server keeps the marker of an expired key, so that a view that was disconnected sees
the expiry."""
REMOVED = "Cortex-Removed"
"""Header of a removal by a program of the fleet, which is meant; any other one is an accident, and
whoever wrote the key writes it again."""
_PURGE = {
    "KV-Operation": "PURGE",
    "Nats-Rollup": "sub",
    "Nats-TTL": str(_MARKER_SECONDS),
    REMOVED: "yes",
}
_WRONG_SEQUENCE = 10071
_NO_MESSAGE = 10037


class Stored(NamedTuple):
    """A key's last value (None when it is gone) and its sequence number."""

    value: bytes | None
    sequence: int
    is_meant: bool = True
    """Whether a value that is gone was removed by a program of the fleet, has expired, or was never
    there."""


class KvBucket:
    """One bucket: file storage, one value per key, republished on ``cortex.kv.<bucket>.>``."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self.name = name
        self.stream = Stream(bus, _config(name), subjects.kv_write(name, PROBE))

    async def provision(self) -> bool:
        """Creates the bucket or adjusts it to this version; False when JetStream cannot."""
        try:
            await self.stream.ensure()
        except StorageError as error:
            log.error("cannot make the bucket %s: %s", self.name, error)
            return False
        return True

    async def put(self, key: str, value: bytes, *, ttl_seconds: int = 0) -> bool:
        """Stores a value; False when the bucket is missing or JetStream does not answer."""
        headers = {"Nats-TTL": str(ttl_seconds)} if ttl_seconds else None
        return await self._write(key, value, headers)

    async def delete(self, key: str) -> bool:
        """Removes a key; the marker that it leaves expires."""
        return await self._write(key, b"", _PURGE)

    async def put_if(
        self, key: str, value: bytes, *, after: int, ttl_seconds: int = 0
    ) -> int | None:
        """Stores a value if the key's last one has the sequence *after* (0 = it has none), and
        returns its sequence; 0 when another writer was faster, None when JetStream does not answer
        or refuses, which is logged."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        if ttl_seconds:
            headers["Nats-TTL"] = str(ttl_seconds)
        return await self._write_if(key, value, headers)

    async def delete_if(self, key: str, *, after: int) -> int | None:
        """Removes a key under the condition of :meth:`put_if`."""
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(after),
            **_PURGE,
        }
        return await self._write_if(key, b"", headers)

    async def _write_if(self, key: str, value: bytes, headers: dict[str, str]) -> int | None:
        subject = subjects.kv_write(self.name, key)
        answer = await self._bus.request(subject, value, headers=headers, timeout=1)
        if answer is None:
            return None
        try:
            return int(checked(answer)["seq"])
        except StorageError as error:
            if error.code == _WRONG_SEQUENCE:
                return 0
            log.warning("cannot write %s in %s: %s", key, self.name, error)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            log.warning("cannot write %s in %s: an odd answer: %r", key, self.name, error)
        return None

    async def read(self, key: str) -> Stored | None:
        """Reads what is stored now, as the stream's leader knows it; None when it does not answer
        in its own way."""
        body = json.dumps({"last_by_subj": subjects.kv_write(self.name, key)}).encode()
        subject = f"$JS.API.STREAM.MSG.GET.KV_{self.name}"
        answer = await self._bus.request(subject, body, timeout=1)
        if answer is None:
            return None
        try:
            message = checked(answer)["message"]
            headers = base64.b64decode(message.get("hdrs", ""))
            data = base64.b64decode(message.get("data", ""))
            sequence = int(message["seq"])
        except StorageError as error:
            return Stored(None, 0) if error.code == _NO_MESSAGE else None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None
        gone = b"Nats-Marker-Reason" in headers or b"KV-Operation: " in headers
        is_meant = b"Nats-Marker-Reason: MaxAge" in headers or REMOVED.encode() in headers
        return Stored(None if gone else data, sequence, is_meant)

    async def created(self) -> str | None:
        """Returns the bucket's creation time in a form that sorts; None when JetStream does not
        answer."""
        try:
            info = await self.stream.info()
        except StorageError:
            return None
        if info is None:
            return None
        seconds, _, fraction = info.created.rstrip("Z").partition(".")
        return f"{seconds}.{fraction:0<9}Z"

    async def _write(self, key: str, value: bytes, headers: dict[str, str] | None) -> bool:
        answer = await self._bus.request(
            subjects.kv_write(self.name, key), value, headers=headers, timeout=2
        )
        if answer is None:
            return False
        try:
            checked(answer)
        except StorageError as error:
            log.warning("cannot write %s in %s: %s", key, self.name, error)
            return False
        return True


def _config(name: str) -> dict[str, object]:
    """Memory storage would forget the fleet at every server restart."""
    return {
        "name": f"KV_{name}",
        "subjects": [subjects.kv_write(name, ">")],
        "storage": "file",
        "max_msgs_per_subject": 1,
        "max_bytes": 64 << 20,
        "duplicate_window": 120_000_000_000,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": _MARKER_SECONDS * 1_000_000_000,
        "republish": {
            "src": subjects.kv_write(name, ">"),
            "dest": subjects.kv_update(name, ">"),
        },
    }
