"""What travels on the bus, one readable line per message: the work of ``cortex spy``.

Shows what ``nats sub 'cortex.>'`` shows, without heartbeats unless they are asked for. It only
listens; must not know what a message means.
"""

from collections.abc import Callable

from protocol.bus import Bus, BusMessage

EVERYTHING = "cortex.>"
QUIET = ("cortex.heartbeat.",)
"""Left out unless asked for: every node and gateway sends two a second."""


async def spy(
    bus: Bus, show: Callable[[str], None], *, subject: str = EVERYTHING, heartbeats: bool = False
) -> None:
    """Calls *show* with one line per message of *subject*, from now on."""

    def arrived(message: BusMessage) -> None:
        if heartbeats or not message.subject.startswith(QUIET):
            show(f"{message.subject} {message.data.decode(errors='replace')}")

    await bus.subscribe(subject, arrived)
    await bus.flush()


async def follow(
    url: str, token: str, show: Callable[[str], None], *, subject: str, heartbeats: bool
) -> None:
    """Shows messages until cancelled. Raises ``BusSetupError`` when NATS cannot be reached."""
    bus = await Bus.connect(url, name="spy", token=token)
    try:
        await spy(bus, show, subject=subject, heartbeats=heartbeats)
        await bus.closed.wait()
    finally:
        await bus.close()
