"""One NATS connection with the options that a serving fleet needs.

nats-py's defaults notice a dead server after six minutes, give up for good after two, and let one
exception in an error callback stop the read loop in silence. Here it pings every few seconds,
bounds the first connect, then reconnects without end, and its callbacks cannot raise.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from protocol.bus.client import NO_HEADERS, BusMessage, GuardedClient, Handler, handle

log = logging.getLogger("bus")

MINIMUM_SERVER = (2, 12)
"""Prioritized pulls came with 2.12; per-message TTLs with 2.11 (2.9 accepts and ignores them)."""
MINIMUM_PAYLOAD_BYTES = 1 << 20
"""The default of nats-server."""
GOOD_PAYLOAD_BYTES = 8_000_000
_HEADROOM_BYTES = 4096
"""Kept free for headers: a message whose payload and headers exceed max_payload closes a nats-py
client for good."""
_PENDING_BYTES = 8 << 20
_FLUSH_SECONDS = 2.0
"""How long a publish may wait while that much is pending; nats-py's default is for ever."""
_SUBJECT = re.compile(r"[!-~]{1,1000}")
"""All subjects of the fleet are printable; the server closes a connection that sends a line of more
than 4,096 bytes."""
_BROKEN = (nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError, ConnectionError)


class BusSetupError(Exception):
    """Raised when the first connect fails or the server cannot carry a fleet; its text is for
    people."""


class Bus:
    """A connected client. ``closed`` is set when the connection is gone for good."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name
        self.closed = asyncio.Event()
        self.reconnects = 0
        self._client = GuardedClient()
        self._closing = False
        self._last_error: Exception | None = None
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._stops: list[Subscription] = []

    @classmethod
    async def connect(
        cls, url: str, *, name: str, token: str = "", deadline_seconds: float = 5.0
    ) -> Self:
        """Connects and checks the server; raises :class:`BusSetupError`, which names the remedy."""
        bus = cls(url, name)
        try:
            async with asyncio.timeout(deadline_seconds):
                await bus._first_connect(token)
                await bus._check_server()
        except TimeoutError:
            await bus.close()
            raise BusSetupError(bus._why_not_connected()) from None
        except BusSetupError:
            await bus.close()
            raise
        return bus

    async def _first_connect(self, token: str) -> None:
        options: dict[str, Any] = {"token": token} if token else {}
        while True:
            # A bounded number of attempts: with endless ones nats-py's connect() never returns
            # for a dead server or a refused login.
            try:
                await self._client.connect(
                    self.url,
                    name=self.name,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0.1,
                    connect_timeout=1,
                    ping_interval=2,
                    max_outstanding_pings=2,
                    pending_size=_PENDING_BYTES,
                    flush_timeout=_FLUSH_SECONDS,
                    inbox_prefix=f"_INBOX_{self.name}",
                    error_cb=self._errored,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._reconnected,
                    closed_cb=self._was_closed,
                    **options,
                )
                break
            except (nats.errors.Error, OSError, ValueError) as error:
                if self._is_refusal(error) or isinstance(error, ValueError):
                    raise BusSetupError(self._why_not_connected(error)) from None
                await asyncio.sleep(0.1)
                self._client = GuardedClient()
        self._client.options["max_reconnect_attempts"] = -1

    def _is_refusal(self, error: Exception) -> bool:
        texts = f"{error} {self._last_error}".lower()
        return "authoriz" in texts or "authentic" in texts

    def _why_not_connected(self, error: Exception | None = None) -> str:
        error = error or self._last_error or TimeoutError()
        if self._is_refusal(error):
            return (
                f"NATS at {self.url} refuses the login. Give the credentials that its "
                "configuration expects (--nats-token-file FILE)."
            )
        reason = str(self._last_error or error) or type(error).__name__
        return (
            f"no NATS server answers at {self.url} ({reason}). Start nats-server with "
            "deploy/nats.conf, or name another one with --nats URL."
        )

    async def _check_server(self) -> None:
        version = self._client.connected_server_version
        found = f"{version.major}.{version.minor}.{version.patch}"
        if (version.major, version.minor) < MINIMUM_SERVER:
            needed = ".".join(map(str, MINIMUM_SERVER))
            raise BusSetupError(
                f"NATS at {self.url} is version {found}; {needed} or newer is needed, older ones "
                "silently ignore expiry times. Upgrade nats-server."
            )
        payload = int(self._client.max_payload)
        if payload < MINIMUM_PAYLOAD_BYTES:
            raise BusSetupError(
                f"NATS at {self.url} has max_payload = {payload:,} bytes; at least "
                f"{MINIMUM_PAYLOAD_BYTES:,} are needed. Set max_payload: 8MB (deploy/nats.conf)."
            )
        if payload < GOOD_PAYLOAD_BYTES:
            log.warning(
                "NATS at %s has max_payload = %s bytes: requests with more text than that, less "
                "the room for their answers, are refused. Set max_payload: 8MB (deploy/nats.conf).",
                self.url,
                f"{payload:,}",
            )
        try:
            answer = await self._client.request("$JS.API.INFO", b"", timeout=2)
            problem = json.loads(answer.data).get("error", {}).get("description", "")
        except nats.errors.NoRespondersError:
            problem = "no responders"
        except nats.errors.TimeoutError:
            problem = "no answer in 2 s"
        if problem:
            raise BusSetupError(
                f"JetStream is off on NATS at {self.url} ({problem}). Add 'jetstream {{}}' to its "
                "configuration, or start it with deploy/nats.conf."
            )

    # -- state ---------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """False while the client is reconnecting."""
        return bool(self._client.is_connected)

    @property
    def is_reconnecting(self) -> bool:
        """True while the connection is lost and has not been given up."""
        return bool(self._client.is_reconnecting)

    def stop_later(self, subscription: "Subscription") -> None:
        """Ends *subscription* after the reconnect; called by :class:`Subscription`."""
        self._stops.append(subscription)

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that the server takes, less the room for headers."""
        return int(self._client.max_payload) - _HEADROOM_BYTES

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Runs *callback* after every reconnect, as the server must be told again what it forgot.

        Returns the function that takes the registration back.
        """
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    async def _errored(self, error: Exception) -> None:
        if "permissions violation" in str(error):
            log.critical("NATS denies %s: %s. See the roles in deploy/nats.conf.", self.name, error)
        elif self._client.is_connected and not self._closing:
            # A broken connection is reported once it is certain.
            level = logging.DEBUG if isinstance(error, _BROKEN) else logging.WARNING
            log.log(level, "NATS: %s", error or type(error).__name__)
        self._last_error = error

    async def _disconnected(self) -> None:
        if not self._closing and not self.closed.is_set():
            log.warning("lost the connection to NATS at %s; reconnecting", self.url)

    async def _reconnected(self) -> None:
        stops, self._stops = self._stops, []
        for subscription in stops:
            await subscription.stop()
        self.reconnects += 1
        log.warning("connected to NATS at %s again", self.url)
        for callback in list(self._on_reconnect):
            try:
                await callback()
            except Exception:
                log.exception("after reconnect")

    async def _was_closed(self) -> None:
        if not self._closing:
            log.critical("NATS closed the connection for good: %s", self._last_error)
        self.closed.set()

    # -- messages ------------------------------------------------------------------------------

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Sends a message; raises :class:`BusOverflow` if it is larger than the server takes.

        While disconnected, up to 8 MiB of messages are kept, and more are dropped with a warning:
        what must not be lost is repeated by its protocol, not by this buffer.
        """
        if len(data) > self.max_payload_bytes:
            raise BusOverflow(len(data), self.max_payload_bytes)
        if not _can_be_sent(subject, reply):
            return
        try:
            await self._client.publish(subject, data, reply=reply, headers=headers)
        except (
            nats.errors.OutboundBufferLimitError,
            nats.errors.ConnectionClosedError,
            nats.errors.BadSubjectError,
        ) as error:
            log.warning("dropped a message on %r: %s", subject, error)

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout: float = 2.0,
        headers: dict[str, str] | None = None,
    ) -> bytes | None:
        """Returns the payload of the answer, or None when nobody answers in time."""
        if len(data) > self.max_payload_bytes:
            raise BusOverflow(len(data), self.max_payload_bytes)
        if not _can_be_sent(subject):
            return None
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            answer = await self._client.request(subject, data, timeout=timeout, headers=headers)
        except nats.errors.Error:  # time-out, no responders, disconnected, closed
            answer = None
        if task and task.cancelling() > cancels:
            # Before Python 3.12, wait_for() inside the client swallows a cancellation that arrives
            # together with the answer.
            raise asyncio.CancelledError
        return None if answer is None else bytes(answer.data)

    async def ask_all(self, subject: str, data: bytes, *, seconds: float) -> list[bytes]:
        """Returns the answers of everybody who answers in time: within *seconds* for the first, and
        within a tenth of that afterwards for the others."""
        inbox, first = self.new_inbox(), asyncio.Event()
        answers: list[bytes] = []

        def answered(message: BusMessage) -> None:
            if "Status" not in message.headers:  # "no responders"
                answers.append(message.data)
                first.set()

        subscription = await self.subscribe(inbox, answered)
        try:
            await self.publish(subject, data, reply=inbox)
            async with asyncio.timeout(seconds):
                await first.wait()
            await asyncio.sleep(seconds / 10)
        except TimeoutError:
            pass
        finally:
            await subscription.stop()
        return answers

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> "Subscription":
        """Calls *handler* for every message, also after a reconnect."""

        async def deliver(message: Msg) -> None:
            headers = message.headers or NO_HEADERS
            handle(handler, BusMessage(message.subject, message.data, message.reply, headers))

        deliver.handler = handler  # type: ignore[attr-defined]
        inner = await self._client.subscribe(subject, queue=queue, cb=deliver)
        return Subscription(self, inner)

    def new_inbox(self) -> str:
        """Returns a new subject for answers to this process alone."""
        return str(self._client.new_inbox())

    async def flush(self, timeout: float = 2.0) -> bool:
        """Waits until the server has everything that was sent so far; returns False if it does not
        answer."""
        try:
            await self._client.flush(timeout=timeout)
        except nats.errors.Error:
            return False
        return self.is_connected  # while disconnected, nats-py returns at once

    @property
    def client(self) -> Client:
        """The nats-py client, for ``nats.micro``."""
        return self._client

    async def close(self) -> None:
        """Flushes and closes; never raises."""
        self._closing = True
        try:
            async with asyncio.timeout(2):
                if self._client.is_connected:
                    await self._client.flush(timeout=1)
                await self._client.close()
        except Exception:
            log.debug("NATS connection closed without a flush", exc_info=True)
        finally:
            await self._client.abandon()
            self.closed.set()


class BusOverflow(Exception):
    """Raised instead of sending a message that is larger than the server takes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes exceeds the bus limit of {limit} bytes")
        self.size = size
        self.limit = limit


class Subscription:
    """A running subscription."""

    def __init__(self, bus: Bus, inner: Any) -> None:
        self._bus = bus
        self._inner = inner

    async def stop(self) -> None:
        """Ends it: no message is delivered afterwards."""
        self._inner._cb.handler = _ignore
        if self._bus.is_reconnecting:
            # nats-py tells the server after an outage what was subscribed during it, but not what
            # was unsubscribed.
            self._bus.stop_later(self)
            return
        try:
            await self._inner.unsubscribe()
        except nats.errors.Error:
            log.debug("unsubscribed from a closed connection")

    async def drain(self) -> None:
        """Ends it once everything that the server has sent by now is delivered."""
        try:
            async with asyncio.timeout(1):
                await self._inner.drain()
        except (TimeoutError, nats.errors.Error):
            self._inner._closed = False  # or nats-py would subscribe it again after a reconnect
            await self.stop()


def _can_be_sent(*subjects: str) -> bool:
    """Whether the server would take messages on *subjects*; logs it if not. A name in one may have
    come from a message, and be anything: for a subject that it cannot parse, the server closes the
    connection, and nats-py takes that as final."""
    bad = [subject for subject in subjects if subject and not _SUBJECT.fullmatch(subject)]
    if bad:
        log.warning("dropped a message on %r: that is no subject", bad[0][:200])
    return not bad


def _ignore(message: BusMessage) -> None:
    """Takes messages that arrive after the end."""
