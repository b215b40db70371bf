"""Keeps keys of a bucket equal to what one writer says they are, writing only what differs."""

from collections.abc import Callable, Mapping

from protocol.bus import KvBucket, KvView


class KvMirror:
    """The keys that *is_mine*; what an earlier writer left of them is removed."""

    def __init__(self, bucket: KvBucket, view: KvView, is_mine: Callable[[str], bool]) -> None:
        self._bucket = bucket
        self._view = view
        self._is_mine = is_mine

    async def show(self, values: Mapping[str, bytes]) -> bool:
        """These and no others; False when something could not be written, which the next call
        tries again."""
        if not self._view.filled.is_set():
            return False
        written = True
        for key, value in values.items():
            if self._view.get(key) != value:
                written &= await self._bucket.put(key, value)
        for key in [key for key, _ in self._view if self._is_mine(key) and key not in values]:
            written &= await self._bucket.delete(key)
        return written
