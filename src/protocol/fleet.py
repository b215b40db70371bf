"""What a node publishes about itself: hardware, models, load."""

from enum import StrEnum

import msgspec

from protocol.errors import WireError
from protocol.job import PROTOCOL
from protocol.leader import Epoch


class DeviceKind(StrEnum):
    """The kind of a compute device."""

    CPU = "cpu"
    CUDA = "cuda"


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """One compute device of a node."""

    kind: DeviceKind
    index: int
    name: str
    memory_bytes: int
    """VRAM of a GPU; on a CPU, the memory that this process may use."""
    uuid: str = ""
    compute_capability: str = ""
    """Such as ``9.0``; empty for a CPU."""
    driver: str = ""
    budget_bytes: int = 0
    """Memory that models may use; 0 = no models are loaded on it."""


class DeviceUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device at this moment; None = the device does not report it."""

    kind: DeviceKind
    index: int
    memory_free_bytes: int
    utilisation_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    others_bytes: int = 0
    """Memory used by anything but this neuron's models."""


class NodeInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_nodes/<node>.info``: what stays the same while the neuron runs."""

    node: str
    instance: str
    version: str
    host: str
    devices: tuple[Device, ...]
    protocol_min: int = PROTOCOL
    protocol_max: int = PROTOCOL


class NodeLive(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_nodes/<node>.live``: expires when the neuron is gone."""

    node: str
    instance: str
    usage: tuple[DeviceUsage, ...] = ()
    draining: bool = False


class ModelState(StrEnum):
    """The states of a model on a node; the neuron leaves every state without outside help."""

    ABSENT = "absent"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """The progress of a fetch or a load."""

    stage: str
    done: int
    total: int
    unit: str = "bytes"
    seconds_left: float | None = None
    """How much longer the load will take, counted from the writing of the record; None = not
    known."""


class Estimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model takes on a node, as estimated or measured."""

    bytes_each: int
    """Total memory on each of its devices."""
    devices: int = 1
    weight_bytes: int = 0
    kv_bytes: int = 0
    kv_tokens: int = 0
    overhead_bytes: int = 0
    is_measured: bool = False
    """Whether a load on this node has confirmed it."""
    lines: tuple[str, ...] = ()
    """The breakdown, for people."""


class ModelRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_nodes/<node>.model.<model>``: a model that a node has, or could load."""

    node: str
    instance: str
    model: str
    state: ModelState
    progress: Progress | None = None
    error: WireError | None = None
    """Why it failed; for an absent model, why it cannot be loaded here."""
    retry_seconds: float = 0.0
    """For a failed model: time until the neuron tries again, counted from the writing of this
    record."""
    revision: str = ""
    """A digest of the model's files."""
    context_limit: int = 0
    """Tokens of prompt plus answer."""
    slots: int = 0
    """The number of sequences that run at once."""
    memory_bytes: int = 0
    """The memory of weights and KV cache."""
    numerics: str = ""
    """Nodes with equal values compute bit-identical answers."""
    has_files: bool = False
    """Whether it can be loaded without a download."""
    estimate: Estimate | None = None
    """None while it cannot be estimated, because its files are not here."""
    devices: tuple[int, ...] = ()
    """Positions in the node's list of devices on which it holds memory, from the start of its load
    until its process is gone."""
    reserved_bytes: int = 0
    """Memory reserved on each of them."""
    load_seconds: float = 0.0
    """How long its last load took here."""
    why: str = ""
    """Why it was loaded here."""
    is_warm: bool = False
    """Whether its weights are kept in host memory."""
    loads: int = 0
    """The node's count of loads when this engine was started."""
    failed_before: bool = False
    """Whether its last load here showed that it does not work, and nothing has changed since."""
    asked_for: bool = False
    """Whether an operator wants it on this node: it is among the node's default models, or was
    loaded by an order."""


class ModelLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """How busy a model is on a node."""

    running: int = 0
    queued: int = 0
    free_slots: int = 0
    step_seconds: float = 0.0
    """The predicted time of an engine step with one more sequence than now; 0 = not known yet."""
    idle_seconds: float = 0.0
    """Time since its last job ended; 0 while one runs."""
    prefixes: tuple[str, ...] = ()
    """Names of the prompt prefixes in its cache, in hexadecimal, the latest first."""


class NodeHeartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A neuron's heartbeat, sent twice a second."""

    node: str
    instance: str
    models: dict[str, ModelLoad] = {}
    """Load by model id; ready models only."""
    draining: bool = False
    loads: int = 0
    """The number of models loaded since the neuron started."""


class GatewayHeartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A gateway's heartbeat, sent twice a second: neurons stop the jobs of a silent gateway."""

    gateway: str
    instance: str
    epoch: Epoch | None = None
    """The epoch, if this gateway is the placer. Neurons refuse orders of earlier epochs."""


class Describe(msgspec.Struct, frozen=True, omit_defaults=True):
    """The reply of ``cortex.node.<node>.describe``: everything the node knows of itself."""

    info: NodeInfo
    live: NodeLive
    models: tuple[ModelRecord, ...] = ()
