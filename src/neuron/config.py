"""The neuron's configuration, and the only module of neuron that reads the environment."""

import os
import socket
from enum import StrEnum
from pathlib import Path

import msgspec

from protocol.names import InvalidName, check_host_id, host_id_from
from protocol.runtime.settings import SettingsError, load_or_default

DEFAULT_PATH = Path("/etc/neuron/neuron.toml")


class Exact(StrEnum):
    """Whether tokens must be independent of the batch, to the bit."""

    AUTO = "auto"
    """Where the machine can."""
    ON = "on"
    """Or the model is not loaded."""
    OFF = "off"

    @property
    def asked(self) -> bool | None:
        """As the engine's ``Start`` has it."""
        return {Exact.AUTO: None, Exact.ON: True, Exact.OFF: False}[self]


class NeuronConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``neuron.toml``"""

    name: str = ""
    """Name of this node in the fleet; the host's name when empty."""
    nats_url: str = "nats://127.0.0.1:4222"
    nats_token_file: str = ""
    listen: str = "127.0.0.1:13131"
    """Address of ``/health`` and ``/metrics``, the only port that a neuron opens."""
    default_models: tuple[str, ...] = ()
    """Folders, Hugging Face ids, or ``cortex-demo``; loaded at the start, and again when a load has
    failed. Others are loaded when they are wanted."""
    model_dirs: tuple[str, ...] = ()
    """Folders with models, which are offered to the fleet."""
    offer_hub_cache: bool = True
    """Whether the models in the local cache of the Hugging Face Hub are offered."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda:N``."""
    memory_mb: int = 0
    """What models may take of each device, all together; 0 = nine tenths of it."""
    host_cache_mb: int = 0
    """Host memory for the weights of models that are not loaded, so that they come back without
    waiting for a disk; 0 = none. It is locked: RLIMIT_MEMLOCK must allow it."""
    dtype: str = "auto"
    exact: Exact = Exact.AUTO
    slots: int = 8
    """Sequences that run at once, per model."""
    max_context: int = 0
    """Upper bound of prompt plus answer in tokens; 0 = the model's own."""
    kv_cache_mb: int = 0
    """KV cache per model; 0 = for 4,096 tokens a slot, and for at least one long context."""
    threads: int = 0
    """Compute threads of a model on a CPU, which its ranks share; 0 = all cores."""
    drain_seconds: float = 8.0
    """How long running answers may take to finish after SIGTERM."""


def load(path: Path | None) -> NeuronConfig:
    """*path*, or the usual file, or the defaults; raises ``SettingsError``."""
    return load_or_default(path, DEFAULT_PATH, NeuronConfig)


def resolve(config: NeuronConfig) -> NeuronConfig:
    """Fills in what depends on the host and checks it. Raises ``SettingsError``."""
    try:
        name = check_host_id(config.name) if config.name else host_id_from(socket.gethostname())
    except InvalidName as error:
        raise SettingsError(f"name: {error}.") from None
    if config.slots < 1:
        raise SettingsError(f"slots = {config.slots}: at least 1 sequence must be able to run.")
    for key in ("memory_mb", "host_cache_mb", "kv_cache_mb", "max_context", "threads"):
        if getattr(config, key) < 0:
            raise SettingsError(f"{key} = {getattr(config, key)}: not below 0.")
    return msgspec.structs.replace(config, name=name)


def visible_devices() -> str | None:
    """CUDA's own restriction to some devices."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def engine_environment() -> dict[str, str]:
    """The environment of engine processes: CUDA counts devices as NVML does, by their slot (its
    own default is the fastest first), and weights in host memory lie in huge pages (without them
    a step takes 5 to 10 % longer, and differs from process to process)."""
    return {"THP_MEM_ALLOC_ENABLE": "1", **os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
