"""NATS behind typed interfaces: the only part of the code that imports nats-py.

``connection`` holds the client and its options, ``streams`` creates and mends streams, ``kv``
writes keys, ``view`` follows a bucket, ``lanes`` and ``jobs`` are the two sides of the hand-over
stream, ``hearing`` tells whether the server is heard at all. Everything here exists because of a
measured pitfall, which its docstring names.
"""

from protocol.bus.client import BusMessage
from protocol.bus.connection import Bus, BusSetupError
from protocol.bus.hearing import Hearing
from protocol.bus.jobs import Delivery, JobPuller
from protocol.bus.kv import KvBucket
from protocol.bus.lanes import JobLanes, QueueFull
from protocol.bus.streams import StorageError, Stream, StreamInfo
from protocol.bus.view import KvView

__all__ = [
    "Bus",
    "BusMessage",
    "BusSetupError",
    "Delivery",
    "Hearing",
    "JobLanes",
    "JobPuller",
    "KvBucket",
    "KvView",
    "QueueFull",
    "StorageError",
    "Stream",
    "StreamInfo",
]
