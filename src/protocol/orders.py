"""What operators and the placer tell a neuron about models: ``cortex.node.<node>.<verb>``.

The answer says at once whether the order is taken; how it goes on is in the model's record. An
order with an epoch is the placer's; those of an older epoch than the newest known one are refused.
"""

import msgspec

from protocol.catalogue import Profile
from protocol.errors import WireError
from protocol.leader import Epoch


class Victim(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that goes for another one."""

    model: str
    drain_seconds: float = 0.0
    """What still runs then goes on elsewhere; 0 = no limit."""


class LoadOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``load``: have this model ready."""

    model: str
    source: str = ""
    """A folder on the node or a Hugging Face id; empty = the profile's, else the model's id."""
    profile: Profile | None = None
    """None = all defaults."""
    devices: tuple[int, ...] = ()
    """Positions in the node's list; empty = the first where it fits."""
    victims: tuple[Victim, ...] = ()
    """Drained in this order, until the model fits."""
    epoch: Epoch | None = None
    """None = an operator's order."""
    why: str = ""


class UnloadOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``unload``: take no more jobs for it, let the running ones finish, give its memory back."""

    model: str
    drain_seconds: float = 0.0
    """What still runs then goes on elsewhere; 0 = no limit."""
    epoch: Epoch | None = None
    """None = an operator's order."""
    why: str = ""


class PullOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``pull``: have this model's files; nothing is loaded."""

    model: str
    source: str = ""
    profile: Profile | None = None
    epoch: Epoch | None = None
    """None = an operator's order."""


class RecycleOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``recycle``: start its engine anew if nothing runs on it; it comes back by itself."""

    model: str
    loads: int = 0
    """The number of the node's loads for which this is done: the next time is counted from it."""
    epoch: Epoch | None = None
    """None = an operator's order."""


class OrderReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the order was taken."""

    error: WireError | None = None
    """Why not."""
