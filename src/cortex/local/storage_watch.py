"""Restarts the embedded nats-server when it stores nothing although its disk has room.

The gateway mends what it can by itself, within a second or two; this is for what only a restart of
the server mends.
"""

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 2.0
"""How long the gateway has for mending it, from when there is room."""
AGAIN_SECONDS = 15.0
"""Between a restart that has not helped and the next one; doubled each time."""
LONGEST_SECONDS = 600.0
ROOM_BYTES = 16 << 20
"""Less is no room: the server would not even start."""
_ANSWER_SECONDS = 1.0


class StorageWatch:
    """Watches over the gateway's shoulder."""

    def __init__(self, url: str, folder: Path, restart: Callable[[str], None]) -> None:
        """*url*: the gateway's; *folder*: on the server's disk; *restart* takes the reason."""
        self._url = url
        self._folder = folder
        self._restart = restart

    async def run(self) -> None:
        """Watches until cancelled."""
        loop = asyncio.get_running_loop()
        since = restarted = float("-inf")
        pause = first_pause = AGAIN_SECONDS / 2
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            why = await asyncio.to_thread(why_nothing_is_stored, self._url)
            now = loop.time()
            if not why and now - restarted > pause:
                pause = first_pause
            if not why or not _has_room(self._folder):
                since = now
            elif now - since > PATIENCE_SECONDS and now - restarted > pause:
                pause, restarted = min(2 * pause, LONGEST_SECONDS), now
                self._restart(why)


def why_nothing_is_stored(url: str) -> str:
    """Asks a gateway why NATS stores nothing; empty when it does, or when no gateway answers."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=_ANSWER_SECONDS):
            return ""
    except urllib.error.HTTPError as answer:
        try:
            with answer:
                return str(json.load(answer).get("storage") or "")
        except (OSError, ValueError, AttributeError):
            return ""
    except (OSError, ValueError):
        return ""


def _has_room(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free > ROOM_BYTES
    except OSError:
        return False
