"""One text process as the service sees it: starts it, asks it, and ends it when it takes too long.

Owns the verdict on a death: whether the request that it worked on is to blame. Whether that request
is tried again is decided in ``lane``.
"""

import asyncio
import logging
import socket
import time

from neuron.engine_process.child import Child
from neuron.engine_process.launch import CannotLaunch, LaunchText
from neuron.hardware.host import process_time
from neuron.ipc.channel import FrameError, TextServiceEnd
from neuron.ipc.text_messages import TextAnswer, ToText, Working
from neuron.service.texts.patience import Patience, Verdict

log = logging.getLogger("texts")

LOOK_SECONDS = 0.2
"""Time between two looks at a process that has not answered."""
EXIT_SECONDS = 2.0
"""Within which it must end once its channel has."""
_LAUNCH_TRIES = 3
_ABORTED = "signal SIGABRT"
"""How Rust code ends when it gets no memory."""


class TextProcessDied(Exception):
    """Raised when a text process ends, or is ended, before it has answered."""

    def __init__(
        self, how: str, working: Working, *, is_to_blame: bool, was_too_slow: bool = False
    ) -> None:
        """*is_to_blame*: what it worked on, not somebody else's signal, has ended it."""
        super().__init__(how)
        self.working = working
        self.lacked_memory = how.startswith(_ABORTED)
        self.is_to_blame = is_to_blame
        self.was_too_slow = was_too_slow


class TextProcess:
    """A process that answers one request after the other. Create it with :meth:`start`."""

    def __init__(self, child: Child, channel: TextServiceEnd) -> None:
        self._child = child
        self._channel = channel
        self.ended = asyncio.create_task(child.ended(), name=f"text-{child.pid}")
        """Completes when it is gone, with how it ended."""

    @classmethod
    async def start(cls, launch: LaunchText) -> "TextProcess":
        """Starts a process by *launch*. Raises OSError."""
        for _ in range(_LAUNCH_TRIES - 1):
            try:
                return await cls._start_once(launch)
            except CannotLaunch as error:
                log.warning("%s", error)
        return await cls._start_once(launch)

    @classmethod
    async def _start_once(cls, launch: LaunchText) -> "TextProcess":
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await TextServiceEnd.open(ours)
            try:
                return cls(await launch(theirs.fileno()), channel)
            except BaseException:
                channel.close()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether its end has not been noticed yet."""
        return self._child.is_alive

    def kill(self) -> None:
        """Ends it at once. Does not wait: one that waits for a disk may end much later."""
        self._child.kill()
        self._channel.abort()

    async def ask(self, message: ToText, work: Working) -> TextAnswer:
        """Sends a request and waits for its answer; one at a time. *work* is what it begins with.

        Raises :class:`TextProcessDied`; also when cancelled, the process must not be used again.
        """
        self._channel.send_soon(message)  # noticed when it is gone and does not answer
        clock, looked = 0.0, time.monotonic()
        patience = Patience(work, clock)
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    arrived = await self._channel.receive()
            except TimeoutError:
                now = time.monotonic()
                is_late = now - looked > 2 * LOOK_SECONDS
                clock, looked = clock + min(now - looked, 2 * LOOK_SECONDS), now
                if is_late:
                    continue  # when this process itself was delayed, the answer may wait unread
                verdict = patience.judge(clock, process_time(self.pid))
                if verdict is not Verdict.WAIT:
                    raise self._given_up(verdict, patience.work) from None
                continue
            except FrameError as error:
                self.kill()
                raise TextProcessDied(str(error), patience.work, is_to_blame=True) from error
            if not arrived:
                raise await self._death(patience.work)
            for answer in arrived:
                if not isinstance(answer, Working):
                    return answer
                patience.begin(answer, clock)

    def _given_up(self, verdict: Verdict, work: Working) -> TextProcessDied:
        self.kill()
        too_much = verdict is Verdict.TOO_MUCH
        how = f"the {work.what} took too long" if too_much else "it made no progress"
        return TextProcessDied(how, work, is_to_blame=too_much, was_too_slow=too_much)

    async def _death(self, work: Working) -> TextProcessDied:
        """Why it is gone, after its channel has ended."""
        done, _ = await asyncio.wait([self.ended], timeout=EXIT_SECONDS)
        how = self.ended.result() if done else "it closed its channel"
        is_to_blame = bool(done) and not self._child.was_ended_from_outside
        self.kill()
        return TextProcessDied(how, work, is_to_blame=is_to_blame)
