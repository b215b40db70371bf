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
    """Whether a sequence's tokens must be bit-identical in every batch."""

    AUTO = "auto"
    """Exact where the hardware allows it."""
    ON = "on"
    """Refuse to load a model that cannot be computed exactly."""
    OFF = "off"

    @property
    def asked(self) -> bool | None:
        """The value of ``Start.exact`` for this setting."""
        return {Exact.AUTO: None, Exact.ON: True, Exact.OFF: False}[self]


class NeuronConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of ``neuron.toml``."""

    name: str = ""
    """Name of this node in the fleet; the host's name when empty."""
    nats_url: str = "nats://127.0.0.1:4222"
    nats_token_file: str = ""
    listen: str = "127.0.0.1:13131"
    """Address of ``/health`` and ``/metrics``, the only port a neuron opens."""
    default_models: tuple[str, ...] = ()
    """Folders, Hugging Face ids, or ``cortex-demo``: loaded at start, and retried when a load
    fails. Other models are loaded on demand."""
    model_dirs: tuple[str, ...] = ()
    """Folders whose models are offered to the fleet."""
    offer_hub_cache: bool = True
    """Whether the models in the local cache of the Hugging Face Hub are offered."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda:N``."""
    memory_mb: int = 0
    """Memory that all models together may take on each device; 0 = 90 % of it."""
    host_cache_mb: int = 0
    """Host memory that keeps the weights of unloaded models, so that reloading them waits for no
    disk; 0 = none. The memory is locked: RLIMIT_MEMLOCK must allow it."""
    dtype: str = "auto"
    exact: Exact = Exact.AUTO
    slots: int = 8
    """Sequences per model that run at once."""
    max_context: int = 0
    """Upper limit on prompt plus answer, in tokens; 0 = the model's own limit."""
    kv_cache_mb: int = 0
    """KV cache per model; 0 = 4,096 tokens per slot, and at least one long context."""
    threads: int = 0
    """Compute threads of a model on a CPU, shared by its ranks; 0 = all cores."""
    standby: int = 1
    """Whether a process that has imported everything waits to be forked for the next load: 1 saves
    each load the seconds that the imports take, for about 150 MB in all, which the engines then
    share; 0 starts each engine from nothing."""
    drain_seconds: float = 8.0
    """How long running answers may take to finish after SIGTERM, in seconds."""


def load(path: Path | None) -> NeuronConfig:
    """Reads *path*, else the default file, else takes the defaults. Raises ``SettingsError``."""
    return load_or_default(path, DEFAULT_PATH, NeuronConfig)


def resolve(config: NeuronConfig) -> NeuronConfig:
    """Fills in the values that depend on the host, and checks all. Raises ``SettingsError``."""
    try:
        name = check_host_id(config.name) if config.name else host_id_from(socket.gethostname())
    except InvalidName as error:
        raise SettingsError(f"name: {error}.") from None
    if config.slots < 1:
        raise SettingsError(
            f"slots = {config.slots}: a model needs at least 1 slot to run a sequence. Set it to "
            "1 or more."
        )
    if config.standby not in (0, 1):
        raise SettingsError(
            f"standby = {config.standby}: one waiting process is enough for any number of loads. "
            "Set it to 1, or to 0 for none."
        )
    for key in ("memory_mb", "host_cache_mb", "kv_cache_mb", "max_context", "threads"):
        if getattr(config, key) < 0:
            raise SettingsError(
                f"{key} = {getattr(config, key)}: it must not be negative. Set it to 0 or more."
            )
    return msgspec.structs.replace(config, name=name)


def visible_devices() -> str | None:
    """The value of CUDA_VISIBLE_DEVICES, which restricts the GPUs that CUDA shows."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def cache_folder() -> Path:
    """Where the neuron keeps what it can find out again: ``$XDG_CACHE_HOME/neuron``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "neuron"


def engine_environment() -> dict[str, str]:
    """The environment variables of the service's processes.

    CUDA must number devices as NVML does, by PCI bus address; its own default is fastest first.
    Weights in host memory must lie in huge pages: without them a step takes 5 to 10 % longer, and
    its time differs from process to process. The tokenizers library must start no threads: there is
    one text at a time, and its processor time is measured.
    """
    return {
        "THP_MEM_ALLOC_ENABLE": "1",
        **os.environ,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "TOKENIZERS_PARALLELISM": "false",
        "RUST_BACKTRACE": "0",
    }
