"""The processes of one engine as the service sees them: rank 0 and the ranks it leads; no torch.

They live and die together: when one is gone, so is the model, and the others are ended. Each has a
channel to the service, and rank 0 has a line to each of the others.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import NamedTuple

from neuron.engine_process.child import Child
from neuron.engine_process.launch import CannotLaunch, Launch
from neuron.ipc.channel import ChannelClosed, FrameError, ServiceEnd
from neuron.ipc.messages import FromEngine, Prepare, Start, ToEngine

log = logging.getLogger("engine")

_LAUNCH_TRIES = 3
EXIT_SECONDS = 5.0
"""Seconds within which a process must end once its channel has ended."""


class Arrived(NamedTuple):
    """What arrived from one rank."""

    rank: int
    messages: list[FromEngine]
    """Empty means that the rank is gone."""
    fault: str = ""
    """Why its channel cannot be decoded, if so."""


class RankProcess(NamedTuple):
    """The process of one rank, and the channel to it."""

    child: Child
    channel: ServiceEnd


class RankProcesses:
    """All ranks of one engine; created by :meth:`spawn`."""

    def __init__(self, processes: Sequence[RankProcess]) -> None:
        self._processes = tuple(processes)
        self._arrived: asyncio.Queue[Arrived] = asyncio.Queue()
        self._first_gone: int | None = None
        self._was_killed = False
        self._readers = [
            asyncio.create_task(self._read(rank), name=f"engine-{process.child.pid}")
            for rank, process in enumerate(self._processes)
        ]

    @classmethod
    async def spawn(cls, size: int, launch: Launch) -> "RankProcesses":
        """Starts *size* processes, each by *launch*, which then wait for :meth:`begin`."""
        for _ in range(_LAUNCH_TRIES - 1):
            try:
                return await cls._spawn_once(size, launch)
            except CannotLaunch as error:
                log.warning("%s", error)
        return await cls._spawn_once(size, launch)

    @classmethod
    async def _spawn_once(cls, size: int, launch: Launch) -> "RankProcesses":
        lines = [socket.socketpair() for _ in range(size - 1)]
        processes: list[RankProcess] = []
        try:
            for rank in range(size):
                ends = [ours for ours, _ in lines] if rank == 0 else [lines[rank - 1][1]]
                processes.append(await _spawn(rank, ends, launch))
        except BaseException:
            for process in processes:
                process.child.kill()
                process.channel.close()
                await process.child.ended()
            raise
        finally:
            for line in lines:
                for end in line:
                    end.close()
        return cls(processes)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids in the order of the ranks."""
        return tuple(process.child.pid for process in self._processes)

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped one of them."""
        return any(process.child.is_stopped for process in self._processes)

    async def prepare(self, model_dir: str) -> None:
        """Has rank 0 do what it can before :meth:`begin`."""
        with contextlib.suppress(ChannelClosed):
            await self._processes[0].channel.send(Prepare(model_dir))

    async def begin(self, starts: Sequence[Start]) -> None:
        """Tells each rank what to load."""
        for process, start in zip(self._processes, starts, strict=True):
            with contextlib.suppress(ChannelClosed):  # noticed when it does not answer
                await process.channel.send(start)

    async def send(self, message: ToEngine) -> None:
        """Sends to rank 0. Raises ChannelClosed when it is gone."""
        await self._processes[0].channel.send(message)

    def send_soon(self, message: ToEngine) -> None:
        """Sends to rank 0 without waiting."""
        self._processes[0].channel.send_soon(message)

    async def receive(self) -> Arrived:
        """Waits for the next messages of any rank."""
        return await self._arrived.get()

    def kill(self, *, spared: int | None = None) -> None:
        """Kills all processes at once, except the *spared* rank, which ends by itself."""
        self._was_killed = True
        for rank, process in enumerate(self._processes):
            if rank != spared:
                process.child.kill()

    async def reap(self) -> str:
        """Ends all processes when one is gone or must go; returns how the first one ended."""
        first, was_killed = self._first_gone or 0, self._was_killed
        self._processes[first].channel.close()
        how = await self._processes[first].child.ended(kill_after=EXIT_SECONDS)
        others = [process for rank, process in enumerate(self._processes) if rank != first]
        for process in others:
            process.channel.close()
        # The others end when rank 0 ends; rank 0 does not notice when one of them ends first.
        if first != 0:
            self.kill()
        await asyncio.gather(*(process.child.ended(EXIT_SECONDS) for process in others))
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        if not others:
            return how
        count = len(self._processes)
        who = f"{count} ranks" if was_killed else f"rank {first} of {count}"
        return f"{who}: {how}"

    async def _read(self, rank: int) -> None:
        channel = self._processes[rank].channel
        fault = ""
        try:
            while messages := await channel.receive():
                self._arrived.put_nowait(Arrived(rank, messages))
        except FrameError as error:
            fault = str(error)
        if self._first_gone is None:
            self._first_gone = rank
        self._arrived.put_nowait(Arrived(rank, [], fault))


async def _spawn(rank: int, lines: Sequence[socket.socket], launch: Launch) -> RankProcess:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = await ServiceEnd.open(ours)
        try:
            child = await launch(rank, theirs.fileno(), [end.fileno() for end in lines])
        except BaseException:
            channel.close()
            raise
        return RankProcess(child, channel)
