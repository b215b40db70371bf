"""Demand and decisions: records that gateways, operators and the placer write."""

import msgspec

from protocol.leader import Epoch


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_wanted/<model>.<gateway>``: requests wait for a model at a gateway.

    Ages are relative to the time of writing, so that no two clocks are compared.
    """

    instance: str
    model: str
    gateway: str
    waiting: int
    waited_seconds: float
    """How long the oldest request has waited."""
    bound_seconds: float
    """How long a request waits for its model's load to begin."""
    released: dict[str, float] = {}
    """Models that, at this gateway, nobody but the clients of these requests has used lately, with
    the seconds since then; these clients have nothing else under way, so that nobody would miss the
    models if they went for this one."""


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_placement/pin.<model>``: an operator always wants it loaded on these nodes."""

    instance: str
    model: str
    nodes: tuple[str, ...]


class Drain(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_placement/drain.<node>``: an operator wants no models on this node."""

    instance: str
    node: str


class Placement(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_placement/node.<node>.<model>``: the placer has assigned a model to a node."""

    instance: str
    epoch: Epoch
    node: str
    model: str
    devices: tuple[int, ...]
    victims: tuple[str, ...] = ()
    why: str = ""


class EvictionCandidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model in the order of eviction."""

    model: str
    why: str
    never: bool = False
    """Whether it may not be evicted at present, whatever needs the memory."""


class EvictionOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cortex_eviction/<node>``: the order in which its models would be evicted, first to go
    first."""

    instance: str
    epoch: Epoch
    node: str
    turns: tuple[EvictionCandidate, ...] = ()
