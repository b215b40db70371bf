"""What operators and the placer tell a neuron about models: ``cortex.node.<node>.<verb>``.

The answer says at once whether the order is taken; how it goes on is in the model's record.
"""

import msgspec

from protocol.errors import WireError


class LoadOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``load``: have this model ready."""

    model: str
    source: str = ""
    """A folder on the node or a Hugging Face id; empty = the model's id."""


class UnloadOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``unload``: take no more jobs for it, let the running ones finish, give its memory back."""

    model: str
    drain_seconds: float = 0.0
    """What still runs then goes on elsewhere; 0 = no limit."""


class OrderReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the order was taken."""

    error: WireError | None = None
    """Why not."""
