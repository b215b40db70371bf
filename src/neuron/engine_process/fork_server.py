"""The service's side of the fork server: keeps it running, and has it fork processes: engines, and
those for models' texts.

Owns the server's life and the decision when to do without it: a process that cannot be forked is
started as a new Python, which only takes longer. Linux only. The other side is
``neuron/engine/fork_server.py``.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from neuron.engine_process.adopted import AdoptedProcess
from neuron.engine_process.child import Child
from neuron.engine_process.launch import PROGRAM, CannotLaunch, start_python, start_text_python
from neuron.ipc.fork_requests import MESSAGE_BYTES, NO_PROCESS, READY, ForkRequest, Kind

log = logging.getLogger("fork-server")

IMPORT_SECONDS = 60.0
"""How long a load waits for a server that still imports; a new Python would import as well."""
FORK_SECONDS = 3.0
"""How long a fork may take; a server that needs longer is stuck, and is replaced."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_GOOD_SECONDS = 60.0
"""A server that has run for so long is replaced at once."""
_PR_SET_CHILD_SUBREAPER = 36


class _Running(NamedTuple):
    """A fork server that has been started."""

    child: Child
    control: socket.socket
    ready: asyncio.Task[bool]
    """Whether it got ready; ends with it."""


class ForkServer:
    """Forks processes from one that has imported everything; see :meth:`launch` and
    :meth:`launch_text`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """*environment* is the complete environment of all engines."""
        self._environment = environment
        self._turn = asyncio.Lock()
        self._running: _Running | None = None
        self._made: list[Child] = []

    @property
    def pid(self) -> int:
        """Its process id; 0 while it does not run."""
        return self._running.child.pid if self._running else 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Itself, and every process that it has made and that lives: also those that are not known
        to belong to a model yet."""
        self._made = [child for child in self._made if child.is_alive]
        return (*([self.pid] if self.pid else ()), *(child.pid for child in self._made))

    async def run(self) -> NoReturn:
        """Keeps the server running until cancelled."""
        if not _become_reaper():
            log.info("engines are started as new processes: this system cannot hand children over")
            await asyncio.Event().wait()
        pause, loop = _FIRST_PAUSE_SECONDS, asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                how = await self._run_once()
            except OSError as error:  # no memory, no process, no descriptor: models go on
                how = str(error)
            if loop.time() - began > _GOOD_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.warning("the fork server ended (%s); the next one starts in %.0f s", how, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def launch(self, rank: int, channel: int, lines: Sequence[int]) -> Child:
        """See :class:`~neuron.engine_process.launch.Launch`."""
        child = await self._launch(rank, channel, lines)
        self._made.append(child)
        return child

    async def launch_text(self, channel: int) -> Child:
        """See :class:`~neuron.engine_process.launch.LaunchText`. Does not wait for the server's
        imports, as a new Python without torch takes a tenth of a second."""
        child = await self._launch_text(channel)
        self._made.append(child)
        return child

    async def _launch_text(self, channel: int) -> Child:
        running = self._running
        if running is not None and running.ready.done() and await self._is_ready(running):
            async with self._turn:
                if self._running is running:
                    return await self._fork_for_good(running, ForkRequest(Kind.TEXT), channel, ())
        return await start_text_python(channel, environment=self._environment)

    async def _launch(self, rank: int, channel: int, lines: Sequence[int]) -> Child:
        """Makes the process of one rank; forks it, or starts a new Python where there is no server.
        *channel* and *lines* are descriptors.

        Raises :class:`CannotLaunch` when the server does not fork. It is ended then, but the
        process may come into being nevertheless, so that the descriptors must not be used again.
        """
        running = self._running
        if running is not None and await self._is_ready(running):
            async with self._turn:
                if self._running is running:  # it may have ended while this waited
                    request = ForkRequest(Kind.ENGINE, rank)
                    return await self._fork_for_good(running, request, channel, lines)
        return await start_python(rank, channel, lines, environment=self._environment)

    async def _fork_for_good(
        self, running: _Running, request: ForkRequest, channel: int, lines: Sequence[int]
    ) -> Child:
        """Forks; a process whose caller is cancelled meanwhile is ended."""
        forking = asyncio.create_task(self._fork(running, request, channel, lines))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            undoing = asyncio.create_task(_undo(forking))
            while not undoing.done():  # however often the caller is cancelled
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(undoing)
            raise

    async def _run_once(self) -> str:
        """Starts a server; returns how it ended."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            with theirs:
                command = [*PROGRAM, "--fork-server", "--fd", str(theirs.fileno())]
                # OpenBLAS, which nothing here needs, would start threads when numpy is imported.
                environment = {**self._environment, "OPENBLAS_NUM_THREADS": "1"}
                child = await Child.spawn(command, fds=[theirs.fileno()], environment=environment)
            ready = asyncio.create_task(_says(ours, READY), name="fork server's import")
            self._running = _Running(child, ours, ready)
            try:
                return await child.ended()
            finally:
                self._running = None
                child.kill()
                ready.cancel()
                await asyncio.gather(child.ended(), ready, return_exceptions=True)

    async def _is_ready(self, running: _Running) -> bool:
        """Waits for its imports; ends the server when they take too long."""
        done, _ = await asyncio.wait([running.ready], timeout=IMPORT_SECONDS)
        if not done:
            log.warning("the fork server has imported for %.0f s", IMPORT_SECONDS)
            running.child.kill()
            return False
        return not running.ready.cancelled() and running.ready.result()

    async def _fork(
        self, running: _Running, request: ForkRequest, channel: int, lines: Sequence[int]
    ) -> Child:
        """Raises :class:`CannotLaunch`, after ending the server, when it does not fork."""
        reading = writing = -1
        try:
            reading, writing = os.pipe()
            descriptors = [channel, writing, *lines]
            socket.send_fds(running.control, [request.encode()], descriptors)
            pid = await _answer(running.control)
            if pid:
                adopted, reading = reading, -1
                return Child(await AdoptedProcess.open(pid, adopted))
            why = "it has not answered"
        except OSError as error:
            why = str(error)
        finally:
            for descriptor in (reading, writing):
                if descriptor >= 0:
                    os.close(descriptor)
        running.child.kill()  # a late answer would be taken for the next one
        self._running = None  # its end is noticed a moment later
        raise CannotLaunch(f"the fork server does not fork: {why}")


async def _answer(control: socket.socket) -> int:
    """The new process's id; 0 when there is none within :data:`FORK_SECONDS`."""
    receiving = asyncio.create_task(
        asyncio.get_running_loop().sock_recv(control, MESSAGE_BYTES), name="fork"
    )
    # An answer that arrived while this process itself was held up counts.
    await asyncio.wait([receiving], timeout=FORK_SECONDS)
    if not receiving.done():
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        return 0
    return int(receiving.result() or NO_PROCESS)


async def _undo(forking: asyncio.Task[Child]) -> None:
    """Ends a process that nobody wants any more; half made, it would be nobody's."""
    with contextlib.suppress(CannotLaunch):
        child = await forking
        child.kill()
        await child.ended()


async def _says(control: socket.socket, word: bytes) -> bool:
    """Whether the first message is *word*."""
    with contextlib.suppress(OSError):
        return await asyncio.get_running_loop().sock_recv(control, MESSAGE_BYTES) == word
    return False


def _become_reaper() -> bool:
    """Makes this process the parent of its orphaned descendants; False where there is no such
    thing."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    failed: int = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return not failed
