"""How a model is loaded here: what its profile says, and the node's settings where it says nothing.

Owns the precedence of profile over node, once for the estimate and for the engine: if the two
differed, a load would take other bytes than were reserved for it. Pure. Must not know files,
devices or engines.
"""

from typing import NamedTuple, Self

from neuron.config import NeuronConfig
from protocol.catalogue import Profile
from protocol.runtime.sizes import MIB


class ModelSettings(NamedTuple):
    """The settings of one model on this node."""

    dtype: str
    """``auto`` = as the model's files have it."""
    exact: bool | None
    """Whether tokens must be independent of the batch; None = where the machine can."""
    slots: int
    """Sequences that run at once."""
    max_context: int | None
    """Tokens of one sequence at most; None = the model's own limit."""
    kv_cache_bytes: int | None
    """KV cache of all ranks together; None = as the estimate finds it."""
    ranks: int
    """Processes that share the model by tensor parallelism."""
    threads: int | None
    """Compute threads on a CPU, which the ranks share; None = all cores."""

    @classmethod
    def resolve(cls, profile: Profile, config: NeuronConfig) -> Self:
        """Takes each setting from *profile*, or from *config* where the profile leaves it open."""
        kv_cache_mb = profile.kv_cache_mb or config.kv_cache_mb
        return cls(
            dtype=config.dtype if profile.dtype == "auto" else profile.dtype,
            exact=config.exact.asked,
            slots=profile.slots or config.slots,
            max_context=profile.limit.context or config.max_context or None,
            kv_cache_bytes=kv_cache_mb * MIB or None,
            ranks=profile.min_devices,
            threads=config.threads or None,
        )

    @property
    def kv_cache_bytes_each(self) -> int | None:
        """KV cache of each rank; None = as the estimate finds it."""
        return None if self.kv_cache_bytes is None else self.kv_cache_bytes // self.ranks
