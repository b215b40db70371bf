"""A child of this process that somebody else started: waits for it, and reads its stderr."""

import asyncio
import os


class AdoptedProcess:
    """What :class:`~neuron.engine_process.child.Child` needs of a process; Linux only."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader) -> None:
        """Use :meth:`open` instead."""
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        """Its exit status, or the negative number of the signal that ended it, once it has."""
        self._ended = asyncio.Event()
        self._descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    @classmethod
    async def open(cls, pid: int, stderr: int) -> "AdoptedProcess":
        """Watches the child *pid*, which writes to the pipe that ends in the descriptor *stderr*.
        Takes ownership of both."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(stderr, "rb")
        )
        return cls(pid, reader)

    async def wait(self) -> int:
        """Waits for its end; returns ``returncode``."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        try:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:  # somebody else took the status
            self.returncode = 255
        self._ended.set()
