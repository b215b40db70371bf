"""A JetStream stream as the fleet wants it: created, compared, probed, and made anew.

Nothing about a stream is taken for granted after the start. Operators delete, edit and seal
streams; and once a write to a stream's files has failed, nats-server (2.15) confirms no further
write to it, also when the disk has room again: it answers every question about the stream as if it
were well, but a publish gets no answer at all. Only another stream in its place, or a restart of
the server, helps.
"""

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from protocol.bus.connection import Bus

log = logging.getLogger("bus")

PROBE = "=probe"
"""Subject token, and key, of a probe. No model has it, as it is not a canonical token."""
_STREAM_EXISTS = 10058
_STREAM_MISSING = 10059
_INVALID_CHANGE = 10052
"""NATS's code for a change of configuration that it never allows, such as taking back a denial."""
_UNSTATED: Mapping[str, object] = {
    "retention": "limits",
    "discard_new_per_subject": False,
    "subject_transform": None,
    "republish": None,
    "sources": None,
    "mirror": None,
    "consumer_limits": None,
    "allow_rollup_hdrs": False,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "max_consumers": -1,
    "max_age": 0,
    "no_ack": False,
    "sealed": False,
    "deny_delete": False,
    "deny_purge": False,
}
"""What every stream of the fleet leaves at its default; an operator may have changed it."""
_KEPT = ("num_replicas", "placement", "metadata", "description")
"""What an operator may choose."""
_ASK_SECONDS = 1.0
_PROBE_SECONDS = 0.7
_LATE_SECONDS = 0.1
"""By so much a request ends late only if this process was held up: its answer may have come."""
_PROBES = 3


class StorageError(Exception):
    """Raised when JetStream cannot do what it was asked; its text is NATS's own reason."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code
        """NATS's error code; 0 when nothing answered."""


class StreamInfo(NamedTuple):
    """A stream as the server describes it."""

    created: str
    """Tells a stream from another one of the same name."""
    config: Mapping[str, Any]
    messages: int
    first_sequence: int
    last_sequence: int
    subjects: frozenset[str] | None = None
    """The subjects of its messages, if they were asked for."""
    deleted: frozenset[int] = frozenset()
    """Sequences between the first and the last that are gone, if they were asked for."""


class Stream:
    """One stream. Every method asks the server; none remembers an answer."""

    def __init__(self, bus: Bus, config: Mapping[str, Any], probe_subject: str) -> None:
        """*probe_subject* is one of the stream's subjects that nobody reads."""
        self._bus = bus
        self._config = config
        self._probe_subject = probe_subject
        self.name = str(config["name"])

    async def info(self, *, subjects: str = "", deleted: bool = False) -> StreamInfo | None:
        """Describes the stream, with its *subjects* under a filter and its *deleted* sequences if
        asked for; None when there is no such stream. Raises :class:`StorageError`."""
        body = {"subjects_filter": subjects} if subjects else {}
        if deleted:
            body["deleted_details"] = True  # type: ignore[assignment]
        try:
            found = await self._ask("INFO", body)
        except StorageError as error:
            if error.code == _STREAM_MISSING:
                return None
            raise
        try:
            state = found["state"]
            return StreamInfo(
                str(found["created"]),
                dict(found["config"]),
                int(state["messages"]),
                int(state["first_seq"]),
                int(state["last_seq"]),
                frozenset(state.get("subjects") or ()) if subjects else None,
                frozenset(state.get("deleted") or ()),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StorageError(f"NATS describes the stream {self.name} oddly: {error!r}") from None

    async def ensure(self) -> StreamInfo:
        """Creates the stream or restores its configuration; many gateways may do so at the same
        time. Raises :class:`StorageError`."""
        for _ in range(3):
            info = await self.info()
            if info is None:
                await self._create(self._config)
            elif info.config.get("sealed"):
                await self.replace(info)
            elif self._differs(info.config):
                log.info("restoring the configuration of the stream %s", self.name)
                try:
                    await self.touch(info)
                except StorageError as error:
                    if error.code != _INVALID_CHANGE:
                        raise
                    log.warning("%s", error)
                    await self.replace(info)
            else:
                return info
        raise StorageError(f"the stream {self.name} is changed again and again")

    async def touch(self, info: StreamInfo) -> None:
        """Has the server write the stream's configuration to its disk: raises
        :class:`StorageError` with the reason where a failed write of messages gives none."""
        await self._ask("UPDATE", self._config_like(info))

    async def replace(self, info: StreamInfo, *, only_if_dead: bool = False) -> None:
        """Puts a new, empty stream in the place of the one that *info* describes; with
        *only_if_dead* not if that has stored something since. Raises :class:`StorageError`."""
        now = await self.info()
        is_same = now is not None and now.created == info.created
        is_alive = now is not None and now.last_sequence != info.last_sequence
        if is_same and not (only_if_dead and is_alive):
            log.warning("replacing the stream %s, which cannot be mended", self.name)
            try:
                await self._ask("DELETE", {})
            except StorageError as error:
                if error.code != _STREAM_MISSING:  # another gateway was faster
                    raise
            await self._create(self._config_like(info))
        await self.ensure()

    async def _create(self, config: Mapping[str, Any]) -> None:
        """Creates the stream, unless another gateway is faster."""
        try:
            await self._ask("CREATE", config)
            log.info("created the stream %s", self.name)
        except StorageError as error:
            if error.code != _STREAM_EXISTS:
                raise

    def _config_like(self, info: StreamInfo) -> dict[str, Any]:
        """The stream's configuration, with what an operator has chosen."""
        kept = {name: info.config[name] for name in _KEPT if info.config.get(name)}
        return {**kept, **self._config}

    async def check_room(self, nbytes: int) -> None:
        """Has the server store *nbytes* in a stream of their own, and drops them. Raises
        :class:`StorageError` when it cannot. Should this process die meanwhile, an empty stream
        is left."""
        name = f"cortex-room-{secrets.token_hex(4)}"
        subject = f"cortex.room.{name}"
        config = {"name": name, "subjects": [subject], "storage": "file", "max_age": 60 * 10**9}
        room = Stream(self._bus, config, subject)
        try:
            await room._ask("CREATE", config)
            await room.probe(nbytes)
        finally:
            with contextlib.suppress(StorageError):
                await room._ask("DELETE", {})

    async def probe(self, nbytes: int = 0) -> None:
        """Has a message stored that nobody reads, and removes it where that is possible. Raises
        :class:`StorageError` when the server refuses it, or does not confirm it in time."""
        headers = {"KV-Operation": "DEL"}  # in a bucket, it is no value
        if self._config.get("allow_msg_ttl"):
            headers["Nats-TTL"] = "1"
        sequence = checked(await self._confirmation(bytes(nbytes), headers)).get("seq")
        if not self._config.get("deny_delete"):
            await self._remove(sequence)

    async def _remove(self, sequence: object) -> None:
        """Removes a probe. That it was stored does not mean that it is on the disk, and the server
        may have other reasons to refuse this; so it is asked about its disk."""
        try:
            await self._ask("MSG.DELETE", {"seq": sequence, "no_erase": True})
        except StorageError as error:
            info = await self.info() if error.code else None
            if info is not None:
                await self.touch(info)

    async def _confirmation(self, data: bytes, headers: dict[str, str]) -> bytes:
        """Publishes a probe. That nothing has answered counts only if this process could hear."""
        for _ in range(_PROBES):
            began = time.monotonic()
            answer = await self._bus.request(
                self._probe_subject, data, timeout=_PROBE_SECONDS, headers=headers
            )
            if answer is not None:
                return answer
            if time.monotonic() - began < _PROBE_SECONDS + _LATE_SECONDS:
                break
        raise StorageError(f"writes to the stream {self.name} are not confirmed")

    def _differs(self, found: Mapping[str, Any]) -> bool:
        wanted = {**_UNSTATED, **self._config}
        return any((found.get(name) or 0) != (value or 0) for name, value in wanted.items())

    async def _ask(self, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        subject = f"$JS.API.STREAM.{verb}.{self.name}"
        data = json.dumps(body).encode() if body else b""
        answer = await self._bus.request(subject, data, timeout=_ASK_SECONDS)
        if answer is None:
            raise StorageError("JetStream does not answer")
        return checked(answer)


def checked(answer: bytes) -> dict[str, Any]:
    """Reads an answer of JetStream. Raises :class:`StorageError` for one that reports an error, and
    for what is none: anybody may answer."""
    try:
        found = json.loads(answer)
        error = found.get("error")
        if error:
            code = int(error.get("err_code") or error.get("code") or 1)
            raise StorageError(_reason(error), code)
        return dict(found)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise StorageError("NATS gave an answer that cannot be read", 1) from None


def _reason(error: Mapping[str, Any]) -> str:
    """NATS's description, without the paths of its host: they are nobody else's business."""
    text = str(error.get("description") or "no reason given")
    return text.rpartition(": ")[2] if "/" in text else text
