"""A model's profile: its settings as operators define them. One KV record each, in
``cortex_catalogue``."""

from enum import StrEnum

import msgspec

CALL_STYLES = ("hermes", "xml", "llama", "mistral")
"""The formats in which models write tool calls; ``auto`` = as the chat template shows."""

USUAL_RESIDENCY = 100
PINNED_RESIDENCY = 1000
"""Residency class of a model with ``pinned_on`` whose profile names no class."""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """The table ``[models.limit]``, in tokens; 0 = the model's own limit."""

    context: int = 0
    """Limit of prompt and answer together."""
    output: int = 0


class SamplingDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """The table ``[models.sampling]``, for requests that set nothing; None = the model's own."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One table ``[[models]]`` of ``models.toml``."""

    id: str
    aliases: tuple[str, ...] = ()
    """Other names; ``*`` stands for any text, ``?`` for any one character."""
    source: str = ""
    """A folder on the nodes, or a Hugging Face id; empty = the id."""
    revision: str = ""
    """A branch, tag or commit on the Hub."""
    harness: str = ""
    """Accepted and ignored: there is one engine."""
    dtype: str = "auto"
    quant: str = ""
    min_devices: int = 1
    """Devices of a node that share the model."""
    min_device_vram_mb: int = 0
    """Smaller devices are not used."""
    vram_mb: int = 0
    """Memory that it takes on all devices together, instead of an estimate."""
    pinned_on: tuple[str, ...] = ()
    """Nodes on which it is always loaded, and never evicted."""
    nodes: tuple[str, ...] = ()
    """Nodes on which it may run; empty = all."""
    residency_priority: int | None = None
    """Its residency class: it displaces models of the same and of lower classes. None = 100, or
    1000 where it is pinned."""
    min_replicas: int = 0
    """Replicas that must stay loaded."""
    max_replicas: int = 1
    """Upper bound of replicas, loaded while requests keep waiting and memory is free."""
    idle_seconds: float = 0.0
    """Idle time after which it is unloaded; 0 = only when its memory is needed."""
    slots: int = 0
    """Sequences that run at once; 0 = the node's setting."""
    kv_cache_mb: int = 0
    """MiB of KV cache; 0 = the node's setting."""
    tool_calls: str = "auto"
    """One of ``CALL_STYLES``, for models whose chat template does not show it."""
    limit: Limits = Limits()
    sampling: SamplingDefaults = SamplingDefaults()

    @property
    def residency(self) -> int:
        """Its residency class, as set or implied."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_RESIDENCY if self.pinned_on else USUAL_RESIDENCY


class Origin(StrEnum):
    """Where a profile comes from."""

    FILE = "file"
    """From ``models.toml``: it is removed when the file no longer contains it."""
    OPERATOR = "operator"
    """Added at run time: it stays until an operator removes it."""


class CatalogueRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_catalogue/<model>``: a profile, written by the gateway that received it."""

    instance: str
    profile: Profile
    origin: Origin = Origin.FILE
