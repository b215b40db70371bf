"""Orders about models from operators and the placer to a neuron: ``cortex.node.<node>.<verb>``.

The reply says at once whether the order is accepted; the model's record shows what comes of it. An
order with an epoch is the placer's; a neuron refuses epochs older than the newest it knows.
"""

import msgspec

from protocol.catalogue import Profile
from protocol.errors import WireError
from protocol.leader import Epoch


class Victim(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that is unloaded to make room."""

    model: str
    drain_seconds: float = 0.0
    """Seconds after which its remaining streams move to another node; 0 = no limit."""


class LoadOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``load``: make this model ready."""

    model: str
    source: str = ""
    """A folder on the node or a Hugging Face id; empty = the profile's source, or else the model's
    id."""
    profile: Profile | None = None
    """The model's profile; None = all defaults."""
    devices: tuple[int, ...] = ()
    """Positions in the node's list of devices; empty = the first where it fits."""
    victims: tuple[Victim, ...] = ()
    """Models to drain in this order, until the model fits."""
    epoch: Epoch | None = None
    """The placer's epoch; None = an operator's order."""
    why: str = ""


class UnloadOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``unload``: accept no more jobs for it, let the running ones finish, free its memory."""

    model: str
    drain_seconds: float = 0.0
    """Seconds after which its remaining streams move to another node; 0 = no limit."""
    epoch: Epoch | None = None
    """The placer's epoch; None = an operator's order."""
    why: str = ""


class PullOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``pull``: fetch this model's files without loading it."""

    model: str
    source: str = ""
    profile: Profile | None = None
    epoch: Epoch | None = None
    """The placer's epoch; None = an operator's order."""


class RecycleOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``recycle``: restart its engine if it is idle; the neuron loads it again by itself."""

    model: str
    loads: int = 0
    """The node's count of loads for which this is done; the next restart is counted from it."""
    epoch: Epoch | None = None
    """The placer's epoch; None = an operator's order."""


class OrderReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the order was accepted."""

    error: WireError | None = None
    """Why it was refused; None when it was accepted."""
