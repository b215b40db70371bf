"""Writing KV keys.

Not through nats-py's KeyValue: its ``put`` has no TTL, and its ``get`` and ``create`` are wrong
for expired keys (2.16). A KV put is a publish on ``$KV.<bucket>.<key>`` with the TTL as a header;
the TTL belongs to the value, so every renewal carries it again.
"""

import json
import logging
from typing import Any

from protocol import subjects
from protocol.bus.connection import Bus

log = logging.getLogger("bus")

_MARKER_SECONDS = 60
"""How long the server keeps the marker of an expired key: a view that was away sees the expiry."""
_STREAM_EXISTS = 10058
_STREAM_MISSING = 10059


class KvBucket:
    """One bucket: file storage, one value per key, republished on ``cortex.kv.<bucket>.>``."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self.name = name

    async def provision(self) -> bool:
        """Creates the bucket or adjusts it to this version; False when JetStream does not answer.

        Memory storage would forget the fleet at every server restart.
        """
        config = {
            "name": f"KV_{self.name}",
            "subjects": [subjects.kv_write(self.name, ">")],
            "storage": "file",
            "max_msgs_per_subject": 1,
            "max_bytes": 64 << 20,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": _MARKER_SECONDS * 1_000_000_000,
            "republish": {
                "src": subjects.kv_write(self.name, ">"),
                "dest": subjects.kv_update(self.name, ">"),
            },
        }
        return await ensure_stream(self._bus, config)

    async def put(self, key: str, value: bytes, *, ttl_seconds: int = 0) -> bool:
        """Stores a value; False when the bucket is missing or JetStream does not answer."""
        headers = {"Nats-TTL": str(ttl_seconds)} if ttl_seconds else None
        return await self._write(key, value, headers)

    async def delete(self, key: str) -> bool:
        """Removes a key; the marker itself expires."""
        return await self._write(
            key, b"", {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": "60"}
        )

    async def _write(self, key: str, value: bytes, headers: dict[str, str] | None) -> bool:
        answer = await self._bus.request(
            subjects.kv_write(self.name, key), value, headers=headers, timeout=2
        )
        if answer is None:
            return False
        error = json.loads(answer).get("error")
        if error:
            log.warning("cannot write %s in %s: %s", key, self.name, error.get("description"))
        return not error


async def ensure_stream(bus: Bus, config: dict[str, Any]) -> bool:
    """Brings a stream to *config*, creating it when it is missing; safe to call at the same time
    from many gateways. False when JetStream does not answer or refuses.

    UPDATE comes first: CREATE of an existing stream counts its reserved space a second time and
    may be refused for that.
    """
    name = config["name"]
    body = json.dumps(config).encode()
    for verb in ("UPDATE", "CREATE", "UPDATE"):
        answer = await bus.request(f"$JS.API.STREAM.{verb}.{name}", body, timeout=1)
        if answer is None:
            return False
        error = json.loads(answer).get("error")
        if not error:
            return True
        if error.get("err_code") not in (_STREAM_MISSING, _STREAM_EXISTS):
            break
    log.error("NATS refuses the stream %s: %s", name, error.get("description"))
    return False
