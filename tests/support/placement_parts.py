"""What the simulated fleet of ``placement_world`` consists of."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from cortex.placement.fit import Need
from cortex.placement.planner import LoadAction

TICK = 0.25
STANDING_BOUND_SECONDS = 60.0
COOLING_SECONDS = 3.0
"""After a load that failed, the node refuses another one for so long."""
SETTLE_SECONDS = 120.0
"""After the last request; by then everything has come to rest."""


class ModelSpec(NamedTuple):
    """A model of the simulated catalogue."""

    need: Need
    load_seconds: float = 5.0
    slots: int = 4
    pinned_on: frozenset[str] = frozenset()
    idle_limit_seconds: float = 0.0
    min_replicas: int = 0
    max_replicas: int = 1
    files: frozenset[str] | None = None
    """Nodes that have them; None = all."""
    fetch_seconds: float = 3.0
    fails: int = 0
    """So many loads fail before one succeeds."""


class Happening(Enum):
    """What befalls a node."""

    DIES = 1
    RETURNS = 2
    DRAINED = 3
    UNDRAINED = 4


class Event(NamedTuple):
    """It happens at a time."""

    at: float
    node: str
    what: Happening


class Request(NamedTuple):
    """Comes at a time, and takes a slot for some seconds."""

    at: float
    model: str
    seconds: float = 0.5
    client: str = ""
    """Whoever sends it; without a name, somebody who is never seen again."""


class Ended(NamedTuple):
    """How a request ended."""

    request: Request
    waited: float
    is_served: bool


class Phase(Enum):
    LOADING = 1
    RECYCLING = 2
    READY = 3
    DRAINING = 4


STARTING = (Phase.LOADING, Phase.RECYCLING)


class Waiting(NamedTuple):
    """A request in a line; one whose node has died joins again."""

    request: Request
    since: float


class Stream(NamedTuple):
    """A request that is served."""

    until: float
    ended: Ended


@dataclass
class Replica:
    """A model on a node; it holds its memory in every phase."""

    spec: ModelSpec
    node: str
    devices: tuple[int, ...]
    phase: Phase
    since: float
    loads_at: int = 0
    """What the node had loaded when its engine was started."""
    streams: list[Stream] = field(default_factory=list)
    idle_since: float = 0.0

    @property
    def model(self) -> str:
        return self.spec.need.model


@dataclass
class Order:
    """A load that makes room first."""

    load: LoadAction
    victims: deque[Replica]
    draining: Replica | None = None
