"""Decides over how many ranks a model can be split; no torch.

Every rank computes whole attention heads and an equal part of the MLP. With fewer key/value heads
than ranks, several ranks have the same head.
"""

from neuron.models.config import ModelConfig
from neuron.models.errors import LoadError, unsupported

MOST_RANKS = 16
"""No host has more devices than this."""


def check_ranks(config: ModelConfig, ranks: int) -> None:
    """Raises :class:`LoadError` UNSUPPORTED, naming the numbers that work."""
    why = _obstacle(config, ranks)
    if why:
        raise _refusal(config, ranks, why)


def possible_ranks(config: ModelConfig) -> list[int]:
    """All numbers of ranks that work, up to :data:`MOST_RANKS`."""
    return [ranks for ranks in range(1, MOST_RANKS + 1) if not _obstacle(config, ranks)]


def _obstacle(config: ModelConfig, ranks: int) -> str:
    if config.heads % ranks:
        return f"it has {config.heads} attention heads"
    if config.kv_heads % ranks and ranks % config.kv_heads:
        return f"it has {config.kv_heads} key/value heads"
    if config.intermediate_size % ranks:
        return f"its MLP has {config.intermediate_size} inner features"
    return ""


def _refusal(config: ModelConfig, ranks: int, why: str) -> LoadError:
    numbers = ", ".join(map(str, possible_ranks(config)))
    return unsupported(
        f"{why}, which cannot be split over {ranks} devices",
        f"Set min_devices to one of {numbers}.",
    )
