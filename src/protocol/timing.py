"""The times that gateways and neurons must agree on, and the inequalities between them.

Both sides wait for each other by one :class:`Timing`, which is handed down from ``Gateway`` and
``Node``. Every fleet runs with :data:`NORMAL`; tests that do not measure a real bound may run a
whole fleet with a :meth:`Timing.scaled` one. Times that only one side knows, such as how often it
looks at something, stay with that side.
"""

import dataclasses
import math
from typing import Self

_SHORTEST_TTL_SECONDS = 1
"""The shortest TTL, as NATS counts the life of a key in whole seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """All shared times. Raises ``ValueError`` for times that contradict each other."""

    # -- heartbeats, and what their silence means
    heartbeat_seconds: float = 0.5
    """Time between two heartbeats of a gateway or a node."""
    all_heard_seconds: float = 0.7
    """Every living node has sent a heartbeat within this time of a gateway's start."""
    echo_seconds: float = 0.9
    """A process whose own heartbeat has not come back for this long hears nothing from others,
    either."""
    gateway_gone_seconds: float = 1.2
    """Silence after which a neuron considers a gateway gone."""
    node_gone_seconds: float = 1.6
    """Silence after which a gateway considers a node or another gateway gone."""
    hearing_seconds: float = 3.0
    """A neuron must have heard everything for this long before a gateway's silence counts."""
    settled_seconds: float = 3.0
    """Time after a node's start by which it has announced everything that it has."""
    cut_off_seconds: float = 15.0
    """After this long without NATS, a gateway ends its streams and a neuron parks its jobs."""
    remember_seconds: float = 30.0
    """A node that has been silent for less than this may be back."""

    # -- streams
    keep_alive_seconds: float = 0.5
    """Time between two signs of life of a job that has nothing new."""
    watch_seconds: float = 0.1
    """Time between two checks of a gateway for silent streams."""
    lag_seconds: float = 0.25
    """A gateway that stalled for this long has not heard what was sent meanwhile."""
    probe_after_seconds: float = 0.9
    """Silence after which a gateway asks for what it may have missed."""
    lost_after_seconds: float = 1.3
    """Silence after which a stream moves to another node."""
    search_seconds: float = 2.0
    """How long a gateway looks for a stream that it claims, as the stream may be moving between two
    nodes."""
    long_search_seconds: float = 8.0
    """The same while a node is silent that may soon be back, with the stream."""
    kept_seconds: float = 30.0
    """How long a neuron keeps its frames, after a job's end and while the job is parked."""

    # -- records that expire
    live_every_seconds: float = 5.0
    """Time between two writes of a node's live record."""
    live_ttl_seconds: int = 15
    wanted_every_seconds: float = 2.0
    """Time between two writes of a gateway's demand."""
    wanted_ttl_seconds: int = 6
    """Demand expires this long after its gateway is gone."""

    # -- the placer's lease
    lease_ttl_seconds: int = 2
    """A placer that has not renewed its lease for this long has lost it."""
    lease_renew_seconds: float = 0.5
    """Time between two renewals of the lease."""
    lease_look_seconds: float = 0.4
    """Time between two checks of whether the lease is free, in case its end was missed: less than
    what a takeover may take beyond the TTL."""
    lease_margin_seconds: float = 0.25
    """The holder stops this long before the lease ends, for orders that are still on their way."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be more than 0")
        self._check(
            "all_heard_seconds", 1, "heartbeat_seconds", "a node may have sent one just before"
        )
        self._check("echo_seconds", 1, "heartbeat_seconds", "or every echo would come too late")
        self._check("gateway_gone_seconds", 2, "heartbeat_seconds", "one heartbeat may be lost")
        self._check("node_gone_seconds", 3, "heartbeat_seconds", "two heartbeats may be lost")
        self._check(
            "gateway_gone_seconds",
            1,
            "echo_seconds",
            "a neuron that hears nothing must not blame others",
        )
        self._check(
            "lost_after_seconds",
            1,
            "echo_seconds",
            "a gateway that hears nothing must not blame others",
        )
        self._check(
            "hearing_seconds",
            1,
            "gateway_gone_seconds",
            "a living gateway must have been heard first",
        )
        self._check("settled_seconds", 1, "node_gone_seconds", "records follow the heartbeats")
        self._check("remember_seconds", 1, "node_gone_seconds", "or no node would ever be missed")
        self._check("cut_off_seconds", 1, "lost_after_seconds", "others must have taken over first")
        self._check(
            "cut_off_seconds", 1, "gateway_gone_seconds", "others must have taken over first"
        )
        self._check(
            "kept_seconds", 1, "cut_off_seconds", "whoever was cut off may still ask for them"
        )
        self._check("lost_after_seconds", 2, "keep_alive_seconds", "one sign of life may be lost")
        self._check(
            "probe_after_seconds", 1, "keep_alive_seconds", "a job with nothing new would be asked"
        )
        self._check("lost_after_seconds", 1, "probe_after_seconds", "a silent job is asked first")
        self._check("probe_after_seconds", 1, "watch_seconds", "checks must be more frequent")
        self._check("lost_after_seconds", 1, "lag_seconds", "a stall must not look like a loss")
        self._check("search_seconds", 1, "lost_after_seconds", "a stream may be between two nodes")
        self._check("long_search_seconds", 1, "search_seconds", "it is the longer search")
        self._check("live_ttl_seconds", 2, "live_every_seconds", "one write may be lost")
        self._check("wanted_ttl_seconds", 2, "wanted_every_seconds", "one write may be lost")
        self._check("lease_ttl_seconds", 1, "lease_margin_seconds", "nothing would be left of it")
        if not self.lease_held_seconds > 2 * self.lease_renew_seconds:
            raise ValueError(
                f"lease_ttl_seconds - lease_margin_seconds ({self.lease_held_seconds:g}) must be "
                f"more than 2 × lease_renew_seconds ({self.lease_renew_seconds:g}): one renewal "
                "may be lost"
            )

    def _check(self, longer: str, times: int, shorter: str, why: str) -> None:
        """Checks that *longer* exceeds *times* × *shorter*."""
        more, less = getattr(self, longer), getattr(self, shorter)
        if not more > times * less:
            factor = f"{times} × " if times > 1 else ""
            raise ValueError(
                f"{longer} ({more:g}) must be more than {factor}{shorter} ({less:g}): {why}"
            )

    @property
    def lease_held_seconds(self) -> float:
        """How long after the start of a renewal its holder may act as the placer."""
        return self.lease_ttl_seconds - self.lease_margin_seconds

    def scaled(self, factor: float) -> Self:
        """Multiplies every time; those that NATS counts stay whole seconds, at least one."""
        changed = {}
        for field in dataclasses.fields(self):
            time = getattr(self, field.name) * factor
            is_ttl = field.name.endswith("_ttl_seconds")
            changed[field.name] = max(_SHORTEST_TTL_SECONDS, math.ceil(time)) if is_ttl else time
        return dataclasses.replace(self, **changed)


NORMAL = Timing()
"""The times of every real fleet."""
