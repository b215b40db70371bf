"""What a node publishes about itself: hardware, models, load."""

from enum import StrEnum

import msgspec

from protocol.errors import WireError
from protocol.job import PROTOCOL
from protocol.leader import Epoch


class DeviceKind(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """One compute device of a node."""

    kind: DeviceKind
    index: int
    name: str
    memory_bytes: int
    """VRAM of a GPU; for the CPU the memory that this process may use."""
    uuid: str = ""
    compute_capability: str = ""
    """For example ``9.0``."""
    driver: str = ""
    budget_bytes: int = 0
    """What models may take of it; 0 = no models are loaded on it."""


class DeviceUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device at this moment; None = the device does not tell."""

    kind: DeviceKind
    index: int
    memory_free_bytes: int
    utilisation_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    others_bytes: int = 0
    """Taken by others than this neuron's models."""


class NodeInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_nodes/<node>.info``: what does not change while the neuron runs."""

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
    """The life of a model on a node; every state is left by itself."""

    ABSENT = "absent"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a fetch or load is."""

    stage: str
    done: int
    total: int
    unit: str = "bytes"


class Estimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model takes on a node."""

    bytes_each: int
    """On each of its devices, all in all."""
    devices: int = 1
    weight_bytes: int = 0
    kv_bytes: int = 0
    kv_tokens: int = 0
    overhead_bytes: int = 0
    is_measured: bool = False
    """A load here has shown it."""
    lines: tuple[str, ...] = ()
    """The arithmetic, for people."""


class ModelRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_nodes/<node>.model.<model>``: a model that a node has, or could load."""

    node: str
    instance: str
    model: str
    state: ModelState
    progress: Progress | None = None
    error: WireError | None = None
    """Why it failed; when absent, why it cannot be loaded here."""
    retry_seconds: float = 0.0
    """When failed: how long until the neuron tries again, from the writing of this record."""
    revision: str = ""
    """A digest of the model's files."""
    context_limit: int = 0
    """Tokens of prompt plus answer."""
    slots: int = 0
    """Sequences that run at once."""
    memory_bytes: int = 0
    """Weights and KV cache."""
    numerics: str = ""
    """Nodes with equal values compute bit-identical answers."""
    has_files: bool = False
    """It can be loaded without a download."""
    estimate: Estimate | None = None
    """None = not known before its files are here."""
    devices: tuple[int, ...] = ()
    """Positions in the node's list on which it holds memory: from the beginning of its load until
    its process is gone."""
    reserved_bytes: int = 0
    """On each of them."""
    load_seconds: float = 0.0
    """What its last load took here."""
    why: str = ""
    """Who wanted it here."""
    is_warm: bool = False
    """Its weights are kept in host memory."""
    loads: int = 0
    """The node's, when its engine was started."""


class ModelLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """How busy a model is on a node."""

    running: int = 0
    queued: int = 0
    free_slots: int = 0
    step_seconds: float = 0.0
    """What an engine step would take with one more sequence than now; 0 = not known yet."""
    idle_seconds: float = 0.0
    """Since its last job ended; 0 while one runs."""
    prefixes: tuple[str, ...] = ()
    """Names of the beginnings of prompts in its prefix cache, hexadecimal, the latest first."""


class NodeHeartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A neuron's pulse, twice a second."""

    node: str
    instance: str
    models: dict[str, ModelLoad] = {}
    """By model id; ready models only."""
    draining: bool = False
    loads: int = 0
    """How many models were loaded since the neuron started."""


class GatewayHeartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A gateway's pulse, twice a second: neurons stop the jobs of a silent gateway."""

    gateway: str
    instance: str
    epoch: Epoch | None = None
    """It places. Neurons refuse the orders of earlier epochs."""


class Describe(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of ``cortex.node.<node>.describe``: everything the node knows of itself."""

    info: NodeInfo
    live: NodeLive
    models: tuple[ModelRecord, ...] = ()
