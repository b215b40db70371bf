"""What rank 0 of a group sends to the other ranks, and the lines that carry it.

Rank 0 has the scheduler, the sampler and the text; the others carry out its commands. Each command
has its step's number: a rank that receives another number than it expects has missed something and
ends. Nothing is answered: the step's collective operations are the answer, and if a rank does not
take part in them, the service notices, which has the deadline (``engine_process/client.py``).

Block tables are long and grow by one block every 16 steps, so the part that the step before had of
a sequence's table is not sent again. No torch.
"""

import socket
from collections.abc import Sequence

import msgspec

from neuron.ipc.channel import ChannelClosed, FrameError, FrameReader, encode_frame
from neuron.ipc.rank_commands import Command, Compute

_RECEIVE_BYTES = 1 << 20


class RankBroadcast:
    """Rank 0's ends of the lines to the other ranks; does nothing without other ranks."""

    def __init__(self, followers: Sequence[socket.socket] = ()) -> None:
        self._followers = tuple(followers)
        self._encoder = msgspec.msgpack.Encoder()
        self._sent: dict[int, tuple[list[int], int]] = {}

    @property
    def size(self) -> int:
        """The number of ranks, rank 0 included."""
        return len(self._followers) + 1

    def tell(self, command: Command) -> None:
        """Sends *command* to all other ranks. Raises ChannelClosed when one is gone."""
        if not self._followers:
            return
        if isinstance(command, Compute):
            command = self._shortened(command)
        frame = encode_frame(self._encoder, command)
        for follower in self._followers:
            try:
                follower.sendall(frame)
            except OSError as error:
                raise ChannelClosed(f"a rank is gone: {error}") from error

    def _shortened(self, batch: Compute) -> Compute:
        """Omits block table entries that the others have; the same list has only grown."""
        pieces, sent = [], {}
        for piece in batch.pieces:
            table, known = self._sent.get(piece.sequence, (None, 0))
            if table is piece.blocks:
                new = msgspec.structs.replace(piece, blocks=table[known:], known=known)
            else:
                new = piece
            pieces.append(new)
            sent[piece.sequence] = piece.blocks, len(piece.blocks)
        self._sent = sent
        return msgspec.structs.replace(batch, pieces=pieces)


class FollowerEnd:
    """The end of the line at a rank other than 0."""

    def __init__(self, leader: socket.socket) -> None:
        leader.setblocking(True)
        self._socket = leader
        self._reader = FrameReader(msgspec.msgpack.Decoder(Command))
        self._waiting: list[Command] = []
        self._tables: dict[int, list[int]] = {}

    def next(self) -> Command:
        """Waits for the next command.

        Raises ChannelClosed when rank 0 is gone, and FrameError when a command builds on another
        one that never arrived.
        """
        while not self._waiting:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not data:
                raise ChannelClosed("rank 0 closed the line")
            self._waiting += self._reader.feed(data)
        command = self._waiting.pop(0)
        return self._completed(command) if isinstance(command, Compute) else command

    def _completed(self, batch: Compute) -> Compute:
        """Restores the complete block tables."""
        pieces, tables = [], {}
        for piece in batch.pieces:
            table = self._tables.get(piece.sequence, []) if piece.known else []
            if len(table) != piece.known:
                raise FrameError(
                    f"step {batch.step} builds on {piece.known} blocks of sequence "
                    f"{piece.sequence}, but {len(table)} are known"
                )
            table += piece.blocks
            tables[piece.sequence] = table
            pieces.append(msgspec.structs.replace(piece, blocks=table, known=0))
        self._tables = tables
        return msgspec.structs.replace(batch, pieces=pieces)
