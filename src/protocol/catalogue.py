"""A model's profile: what operators say about it. One KV record each, in ``cortex_catalogue``."""

from enum import StrEnum

import msgspec

CALL_STYLES = ("hermes", "xml", "llama", "mistral")
"""How models write calls of tools; ``auto`` = as the chat template shows."""

USUAL_RESIDENCY = 100
PINNED_RESIDENCY = 1000
"""Of a model with ``pinned_on`` whose profile names no class."""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """``[models.limit]``, in tokens; 0 = the model's own."""

    context: int = 0
    """Prompt and answer together."""
    output: int = 0


class SamplingDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """``[models.sampling]``: for requests that do not say; None = the model's own."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """``[[models]]`` of ``models.toml``."""

    id: str
    aliases: tuple[str, ...] = ()
    """Other names; ``*`` and ``?`` stand for any text and any character."""
    source: str = ""
    """A folder on the nodes, or a Hugging Face id; empty = the id."""
    revision: str = ""
    """Branch, tag or commit on the Hub."""
    harness: str = ""
    """Accepted and ignored: there is one engine."""
    dtype: str = "auto"
    quant: str = ""
    min_devices: int = 1
    """How many devices of a node share the model."""
    min_device_vram_mb: int = 0
    """Smaller devices are not used."""
    vram_mb: int = 0
    """What it takes on all devices together, where that is not to be estimated."""
    pinned_on: tuple[str, ...] = ()
    """Nodes on which it is always loaded, and never evicted."""
    nodes: tuple[str, ...] = ()
    """Nodes on which it may run; empty = all."""
    residency_priority: int | None = None
    """Its class: it displaces models of the same and of lower classes. None = 100, or 1000 where it
    is pinned."""
    min_replicas: int = 0
    """So many are always loaded."""
    max_replicas: int = 1
    """More are loaded while requests keep waiting and memory is free, up to so many."""
    idle_seconds: float = 0.0
    """Without a request for so long it is unloaded; 0 = only when its memory is needed."""
    slots: int = 0
    """Sequences that run at once; 0 = as the node says."""
    kv_cache_mb: int = 0
    """0 = as the node says."""
    tool_calls: str = "auto"
    """One of ``CALL_STYLES``, where the chat template does not show it."""
    limit: Limits = Limits()
    sampling: SamplingDefaults = SamplingDefaults()

    @property
    def residency(self) -> int:
        """Its class."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_RESIDENCY if self.pinned_on else USUAL_RESIDENCY


class Origin(StrEnum):
    """Who keeps a profile."""

    FILE = "file"
    """``models.toml``: it goes when the file no longer has it."""
    OPERATOR = "operator"
    """Added at run time: it stays until somebody removes it."""


class CatalogueRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_catalogue/<model>``: a profile, written by the gateway that was told of it."""

    instance: str
    profile: Profile
    origin: Origin = Origin.FILE
