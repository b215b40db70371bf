"""Shows what travels on the bus, one line per message; what ``nats sub 'cortex.>'`` shows too.

python -m tests.support.spy --nats nats://127.0.0.1:4222 --token-file …/nats/token
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from protocol.bus import Bus, BusMessage

QUIET = ("cortex.heartbeat.",)
"""Left out unless asked for: twice a second from everybody."""


async def spy(
    bus: Bus, show: Callable[[str], None], *, subject: str = "cortex.>", heartbeats: bool = False
) -> None:
    """Calls *show* with one readable line per message from now on."""

    def arrived(message: BusMessage) -> None:
        if heartbeats or not message.subject.startswith(QUIET):
            show(f"{message.subject} {message.data.decode(errors='replace')}")

    await bus.subscribe(subject, arrived)
    await bus.flush()


async def _main(options: argparse.Namespace) -> None:
    token = Path(options.token_file).read_text().strip() if options.token_file else ""
    bus = await Bus.connect(options.nats, name="spy", token=token)
    await spy(
        bus,
        lambda line: print(line, flush=True),  # noqa: T201  it is a command
        subject=options.subject,
        heartbeats=options.heartbeats,
    )
    await bus.closed.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show what travels on the bus.")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222")
    parser.add_argument("--token-file")
    parser.add_argument("--heartbeats", action="store_true")
    parser.add_argument("subject", nargs="?", default="cortex.>")
    try:
        asyncio.run(_main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
