"""What is wanted, and what was decided: records that gateways, operators and the placer write."""

import msgspec

from protocol.leader import Epoch


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_wanted/<model>.<gateway>``: requests wait for a model at a gateway.

    Ages are as of the writing, so that no two clocks are compared.
    """

    instance: str
    model: str
    gateway: str
    waiting: int
    waited_seconds: float
    """The oldest request."""
    bound_seconds: float
    """How long a request waits until its model begins to be loaded."""


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_placement/pin.<model>``: an operator wants it loaded on these nodes, always."""

    instance: str
    model: str
    nodes: tuple[str, ...]


class Drain(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_placement/drain.<node>``: an operator wants no models on this node."""

    instance: str
    node: str


class Placement(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_placement/node.<node>.<model>``: the placer has sent a model to a node."""

    instance: str
    epoch: Epoch
    node: str
    model: str
    devices: tuple[int, ...]
    victims: tuple[str, ...] = ()
    why: str = ""


class EvictionCandidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in the order in which models go."""

    model: str
    why: str
    never: bool = False
    """As things are, it goes for nobody."""


class EvictionOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_eviction/<node>``: in which order its models would go, first to go first."""

    instance: str
    epoch: Epoch
    node: str
    turns: tuple[EvictionCandidate, ...] = ()
