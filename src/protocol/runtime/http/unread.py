"""Tells when the client of a connection has stopped reading what it is sent.

What counts is not how fast a client reads, but that it does: whoever reads a few bytes now and then
gets everything. What is unread lies in two places: in the transport, and in the kernel, which takes
megabytes and says that it has room only when a third of them has gone; so both are counted.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Iterator


def unread_bytes(writer: asyncio.StreamWriter) -> int:
    """Returns how many of the bytes that were written the other machine has not taken yet."""
    size: int = writer.transport.get_write_buffer_size()
    sock: socket.socket = writer.get_extra_info("socket")
    answer = bytearray(struct.calcsize("i"))
    with contextlib.suppress(OSError, ValueError):  # it is closed, or this system cannot tell
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, answer)
    (in_kernel,) = struct.unpack("i", answer)
    return size + max(0, int(in_kernel))


@contextlib.contextmanager
def given_up_when_unread(
    writer: asyncio.StreamWriter, seconds: float, give_up: Callable[[], object]
) -> Iterator[None]:
    """Calls *give_up* once during the block, when something is unread and nothing at all has been
    read for *seconds*, and for twice as long at most."""
    if not writer.transport.get_write_buffer_size():  # the usual case: nobody has to wait
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look_again(before: int) -> None:
        nonlocal timer
        now = unread_bytes(writer)
        if 0 < before <= now:
            give_up()
        else:
            timer = loop.call_later(seconds, look_again, now)

    timer = loop.call_later(seconds, look_again, unread_bytes(writer))
    try:
        yield
    finally:
        timer.cancel()
