"""Who this neuron is on the bus, and how it answers a job."""

from protocol import codec, frames, subjects
from protocol.bus import Bus
from protocol.errors import WireError
from protocol.job import Job
from protocol.timing import NORMAL, Timing


class Identity:
    """The node, the instance of its process, and the bus on which both speak."""

    def __init__(self, bus: Bus, node: str, instance: str, timing: Timing = NORMAL) -> None:
        self.bus = bus
        self.node = node
        self.instance = instance
        self.timing = timing

    async def send(self, job: Job, frame: frames.AnyFrame) -> None:
        """Publishes a frame to the job's gateway."""
        await self.bus.publish(subjects.reply(job.gateway, job.id), codec.encode(frame))

    async def refuse(self, job: Job, error: WireError, *, ack: str, retryable: bool) -> None:
        """Ends a job that has not begun."""
        await self.send(
            job,
            frames.Failed(
                attempt=job.attempt,
                instance=self.instance,
                node=self.node,
                error=error,
                retryable=retryable,
                ack=ack,
            ),
        )
