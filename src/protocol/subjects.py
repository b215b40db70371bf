"""Every NATS subject, one function each. Nothing else in the code spells a subject.

========================================  ==================================================
``cortex.job.<model>.<priority>``         gateway → stream JOBS → neurons pull
``cortex.run.<model>.<node>``             gateway → one neuron: jobs past the line
``cortex.reply.<gateway>.<job>``          neuron → gateway: frames of one job
``cortex.job_control.<node>.<job>``             gateway → neuron: cancel, resume
``cortex.locate.<job>``                     request/reply: which neuron has a job
``cortex.claim.<node>.<job>``              request/reply: another gateway goes on with a job
``cortex.node.<node>.<verb>``             request/reply to one neuron: describe,
                                          load, unload, pull, recycle, render
``cortex.heartbeat.node.<node>``          neuron, 2 Hz: liveness and load
``cortex.heartbeat.gateway.<gateway>``    gateway, 2 Hz: liveness
``cortex.kv.<bucket>.<key>``              server → all: RePublish of every KV write
========================================  ==================================================

Model ids are written with :func:`protocol.names.token`. Stream subjects (``cortex.job.>`` and
``$KV.>``) never overlap the others, which are plain core NATS: a message with a reply address on
a stream's subject would get JetStream's own answer.
"""

from protocol.job import Priority
from protocol.names import token, untoken

ALL_JOBS = "cortex.job.>"
ALL_LOCATES = "cortex.find.*"
NODE_HEARTBEATS = "cortex.heartbeat.node.*"
GATEWAY_HEARTBEATS = "cortex.heartbeat.gateway.*"


def job(model: str, priority: Priority) -> str:
    """Where gateways hand a job over; captured by the stream JOBS."""
    return f"cortex.job.{token(model)}.{priority}"


def lane_consumer(model: str, priority: Priority) -> str:
    """The durable consumer of one model and priority on JOBS."""
    return f"{token(model)}-{priority}"


def reply(gateway: str, job_id: str) -> str:
    """Where a neuron sends the frames of a job."""
    return f"cortex.reply.{gateway}.{job_id}"


def all_replies(gateway: str) -> str:
    """One subscription of a gateway receives the frames of all its jobs."""
    return f"cortex.reply.{gateway}.*"


def run(model: str, node: str) -> str:
    """The direct lane: jobs for one neuron, for which the stream's order does not count."""
    return f"cortex.run.{token(model)}.{node}"


def job_control(node: str, job_id: str) -> str:
    """Where a gateway cancels a job or asks for its frames."""
    return f"cortex.steer.{node}.{job_id}"


def all_job_control(node: str) -> str:
    """A neuron's subscription for its jobs."""
    return f"cortex.steer.{node}.*"


def locate(job_id: str) -> str:
    """Where a gateway asks all neurons which of them has a job."""
    return f"cortex.find.{job_id}"


def claim(node: str, job_id: str) -> str:
    """Where a gateway claims a job, to become its owner."""
    return f"cortex.take.{node}.{job_id}"


def all_claims(node: str) -> str:
    """A neuron's subscription for claims of its jobs."""
    return f"cortex.take.{node}.*"


def node_verb(node: str, verb: str) -> str:
    """Request/reply to one neuron, served as the NATS micro service ``neuron``."""
    return f"cortex.node.{node}.{verb}"


def node_heartbeat(node: str) -> str:
    """Where a neuron sends its heartbeats."""
    return f"cortex.heartbeat.node.{node}"


def gateway_heartbeat(gateway: str) -> str:
    """Where a gateway sends its heartbeats."""
    return f"cortex.heartbeat.gateway.{gateway}"


def kv_write(bucket: str, key: str) -> str:
    """JetStream's own subject of a KV key."""
    return f"$KV.{bucket}.{key}"


def kv_update(bucket: str, key: str) -> str:
    """Where the server republishes a KV key after it was stored."""
    return f"cortex.kv.{bucket}.{key}"


def last_token(subject: str) -> str:
    """The job, node or gateway id at the end of a subject."""
    return subject.rpartition(".")[2]


def model_of_job(subject: str) -> str:
    """The model id in a job subject; raises ``InvalidName`` for a foreign subject."""
    return untoken(subject.split(".")[2])
