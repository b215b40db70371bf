"""The channel between the neuron service and a process of its own: both of its ends.

A socketpair carries frames: a length in four big-endian bytes, then one msgpack message of the
unions in ``messages.py`` or ``text_messages.py``. Owns framing and its limits. Must not know what
messages mean, and must not import torch, because the service uses it.
"""

import asyncio
import socket
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from neuron.ipc.messages import FromEngine, ToEngine
from neuron.ipc.text_messages import FromText, ToText

MAX_FRAME_BYTES = 32 << 20
"""Size limit of a message; a longer length means that the other end does not send frames."""
WRITE_BUFFER_BYTES = 1 << 20
"""Bytes that may be buffered in the service for a slow process before ``send`` waits."""
_RECEIVE_BYTES = 1 << 16
_LENGTH_BYTES = 4

Sent = TypeVar("Sent", bound=msgspec.Struct)
Received = TypeVar("Received")


class ChannelClosed(Exception):
    """Raised when the other end is gone."""


class FrameError(Exception):
    """Raised when bytes on the channel are not a valid frame or message."""


class FrameReader(Generic[Received]):
    """Splits a stream of bytes into messages."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[Received]") -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Received]:
        """Takes more bytes and yields each message that they complete."""
        self._buffer += data
        while (frame := self._frame()) is not None:
            try:
                message = self._decoder.decode(frame)
            except msgspec.DecodeError as error:
                raise FrameError(
                    f"an undecodable message arrived on the channel: {error}"
                ) from error
            yield message

    def _frame(self) -> bytes | None:
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if size > MAX_FRAME_BYTES:
            raise FrameError(
                f"a frame of {size} bytes was announced on the channel; the limit is "
                f"{MAX_FRAME_BYTES}"
            )
        end = _LENGTH_BYTES + size
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        return frame


def encode_frame(encoder: msgspec.msgpack.Encoder, message: msgspec.Struct) -> bytes:
    """One message as a frame; raises :class:`FrameError` if it is too large."""
    body = encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a message has {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class BlockingEnd(Generic[Sent, Received]):
    """The blocking end, for the other process."""

    def __init__(
        self, connection: socket.socket, decoder: "msgspec.msgpack.Decoder[Received]"
    ) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._reader = FrameReader(decoder)

    def send(self, message: Sent) -> None:
        """Sends one message; blocks while the service is slow to read."""
        try:
            self._socket.sendall(encode_frame(self._encoder, message))
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, *, wait: bool) -> list[Received]:
        """Returns all messages that have arrived; with *wait*, at least one.

        Raises :class:`ChannelClosed` when the service is gone.
        """
        messages: list[Received] = []
        while True:
            flags = 0 if wait and not messages else socket.MSG_DONTWAIT
            try:
                data = self._socket.recv(_RECEIVE_BYTES, flags)
            except BlockingIOError:
                return messages
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not data:
                raise ChannelClosed("the service closed the channel")
            messages.extend(self._reader.feed(data))


class EngineEnd(BlockingEnd[FromEngine, ToEngine]):
    """An engine process's end."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, msgspec.msgpack.Decoder(ToEngine))


class TextEnd(BlockingEnd[FromText, ToText]):
    """A text process's end."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, msgspec.msgpack.Decoder(ToText))


class AsyncEnd(Generic[Sent, Received]):
    """The asyncio end, for the neuron service."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: "msgspec.msgpack.Decoder[Received]",
    ) -> None:
        self._reader, self._writer = reader, writer
        self._encoder = msgspec.msgpack.Encoder()
        self._frames = FrameReader(decoder)

    async def send(self, message: Sent) -> None:
        """Sends one message; waits while the other process's buffer is full.

        Raises :class:`ChannelClosed` when that process is gone.
        """
        if self._writer.is_closing():
            raise ChannelClosed("the other process closed the channel")
        self.send_soon(message)
        try:
            await self._writer.drain()
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def send_soon(self, message: Sent) -> None:
        """Sends a small message without waiting; it is lost silently if the process is gone."""
        if not self._writer.is_closing():  # uvloop raises where asyncio only logs
            self._writer.write(encode_frame(self._encoder, message))

    async def receive(self) -> list[Received]:
        """Waits for messages. An empty list means that the other process is gone."""
        while True:
            try:
                data = await self._reader.read(_RECEIVE_BYTES)
            except OSError:
                return []
            if not data:
                return []
            messages = list(self._frames.feed(data))
            if messages:
                return messages

    def close(self) -> None:
        """Closes this end; the other process notices that and exits."""
        self._writer.close()

    def abort(self) -> None:
        """Closes this end at once; what has not been sent yet is dropped."""
        self._writer.transport.abort()


class ServiceEnd(AsyncEnd[ToEngine, FromEngine]):
    """The service's end of a channel to an engine process."""

    @classmethod
    async def open(cls, connection: socket.socket) -> "ServiceEnd":
        """Wraps *connection* and takes ownership of it."""
        return cls(*await _streams(connection), msgspec.msgpack.Decoder(FromEngine))


class TextServiceEnd(AsyncEnd[ToText, FromText]):
    """The service's end of a channel to a text process."""

    @classmethod
    async def open(cls, connection: socket.socket) -> "TextServiceEnd":
        """Wraps *connection* and takes ownership of it."""
        return cls(*await _streams(connection), msgspec.msgpack.Decoder(FromText))


async def _streams(
    connection: socket.socket,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(sock=connection)
    writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
    return reader, writer
