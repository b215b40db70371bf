"""Keeps keys of a bucket equal to what their one writer wants, writing only what differs."""

from collections.abc import Callable, Mapping

from protocol.bus import KvBucket, KvView


class KvMirror:
    """Mirrors the keys for which *is_mine* holds; what an earlier writer left there is removed."""

    def __init__(self, bucket: KvBucket, view: KvView, is_mine: Callable[[str], bool]) -> None:
        self._bucket = bucket
        self._view = view
        self._is_mine = is_mine

    async def show(self, values: Mapping[str, bytes]) -> bool:
        """Makes these values the only ones; False when a write failed, which the next call
        retries."""
        if not self._view.filled.is_set():
            return False
        written = True
        for key, value in values.items():
            if self._view.get(key) != value:
                written &= await self._bucket.put(key, value)
        for key in [key for key, _ in self._view if self._is_mine(key) and key not in values]:
            written &= await self._bucket.delete(key)
        return written
