"""A fleet as the planner sees it, in simulated time: nodes drain, load and serve as neurons do.

It keeps its own books of memory and checks them at every step; what the planner is told comes from
them. No clock, no bus.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from cortex.evictor import Strategy
from cortex.placement import DeviceView, Need, NodeView, Resident
from cortex.planner import Load, Want, plan

TICK = 0.25


class ModelSpec(NamedTuple):
    """A model of the simulated catalogue."""

    need: Need
    load_seconds: float = 5.0
    slots: int = 4
    pinned_on: frozenset[str] = frozenset()
    idle_limit_seconds: float = 0.0
    max_replicas: int = 1


class Request(NamedTuple):
    """Comes at a time, and takes a slot for some seconds."""

    at: float
    model: str
    seconds: float = 0.5


class Ended(NamedTuple):
    """How a request ended."""

    request: Request
    waited: float
    is_served: bool


class Phase(Enum):
    LOADING = 1
    READY = 2
    DRAINING = 3


@dataclass
class Replica:
    """A model on a node; it holds its memory in every phase."""

    spec: ModelSpec
    node: str
    devices: tuple[int, ...]
    phase: Phase
    since: float
    ends: list[float] = field(default_factory=list)
    """When its running streams end."""
    idle_since: float = 0.0

    @property
    def model(self) -> str:
        return self.spec.need.model


@dataclass
class Order:
    """A load that makes room first."""

    load: Load
    victims: deque[Replica]
    draining: Replica | None = None


class World:
    """Nodes by name with the bytes of their devices; models by name."""

    def __init__(
        self,
        nodes: dict[str, tuple[int, ...]],
        models: dict[str, ModelSpec],
        *,
        bound_seconds: float = 30.0,
        strategy: Strategy = Strategy.LRU,
    ) -> None:
        self.nodes = nodes
        self.models = models
        self.bound = bound_seconds
        self.strategy = strategy
        self.now = 0.0
        self.replicas: list[Replica] = []
        self.orders: dict[str, Order] = {}
        self.queues: dict[str, deque[Request]] = {name: deque() for name in models}
        self.ended: list[Ended] = []
        self.loads: Counter[str] = Counter()
        self.history: list[tuple[float, str, float]] = []
        """When, where and for how long something was loaded."""
        for spec in models.values():
            for node in spec.pinned_on:
                self._hold(Replica(spec, node, (0,), Phase.READY, 0.0))

    def run(self, requests: list[Request], limit: float = 1e6) -> None:
        """Until every request has ended; raises ``AssertionError`` for a broken rule."""
        coming = deque(sorted(requests))
        while coming or any(self.queues.values()) or any(r.ends for r in self.replicas):
            assert self.now < limit, f"it never ends: {self.queues}"
            while coming and coming[0].at <= self.now:
                request = coming.popleft()
                self.queues[request.model].append(request)
            self._serve()
            self._refuse()
            self._plan()
            self._work()
            self._check()
            self.now += TICK

    # -- what neurons and gateways do ----------------------------------------------------------

    def _ready(self, model: str) -> list[Replica]:
        return [r for r in self.replicas if r.model == model and r.phase is Phase.READY]

    def _serve(self) -> None:
        for replica in self.replicas:
            if replica.ends:
                replica.ends = [end for end in replica.ends if end > self.now]
                if not replica.ends:
                    replica.idle_since = self.now
        for model, queue in self.queues.items():
            for replica in self._ready(model):
                while queue and len(replica.ends) < replica.spec.slots:
                    request = queue.popleft()
                    replica.ends.append(self.now + request.seconds)
                    self.ended.append(Ended(request, self.now - request.at, is_served=True))

    def _refuse(self) -> None:
        for model, queue in self.queues.items():
            while queue and self.now - queue[0].at > self.bound and not self._ready(model):
                request = queue.popleft()
                self.ended.append(Ended(request, self.now - request.at, is_served=False))

    def _work(self) -> None:
        """Nodes go on with their orders."""
        for replica in list(self.replicas):
            if replica.phase is Phase.DRAINING and not replica.ends:
                self.replicas.remove(replica)
            elif replica.phase is Phase.LOADING and self.now >= replica.since:
                replica.phase, replica.since, replica.idle_since = Phase.READY, self.now, self.now
        for node, order in list(self.orders.items()):
            if order.draining in self.replicas:
                continue
            spec = self.models[order.load.model]
            if self._fits(node, spec.need, order.load.devices):
                until = self.now + spec.load_seconds
                self._hold(Replica(spec, node, order.load.devices, Phase.LOADING, until))
                self.loads[spec.need.model] += 1
                self.history.append((self.now, node, spec.load_seconds))
                del self.orders[node]
            elif order.victims:
                order.draining = order.victims.popleft()
                order.draining.phase = Phase.DRAINING
            else:
                raise AssertionError(f"{order.load} does not fit after its victims went")

    def _hold(self, replica: Replica) -> None:
        self.replicas.append(replica)

    def _free(self, node: str, device: int) -> int:
        held = sum(
            r.spec.need.bytes_each for r in self.replicas if r.node == node and device in r.devices
        )
        return self.nodes[node][device] - held

    def _fits(self, node: str, need: Need, devices: tuple[int, ...]) -> bool:
        return all(self._free(node, device) >= need.bytes_each for device in devices)

    # -- what the planner is told, and what it says --------------------------------------------

    def _plan(self) -> None:
        wants = [want for model in self.models if (want := self._want(model)) is not None]
        nodes = [self.view(node) for node in self.nodes]
        made = plan(wants, nodes, self._taken(), self.strategy)
        for load in made.loads:
            self._order(load)
        for unload in made.unloads:
            for replica in self._ready(unload.model):
                if replica.node == unload.node:
                    assert unload.node not in replica.spec.pinned_on, f"{unload}: it is pinned"
                    replica.phase = Phase.DRAINING

    def _taken(self) -> set[str]:
        """Nodes that load something, or make room for it."""
        return set(self.orders) | {r.node for r in self.replicas if r.phase is Phase.LOADING}

    def _want(self, model: str) -> Want | None:
        queue, spec = self.queues[model], self.models[model]
        if not queue or self._is_coming(model):
            return None
        return Want(
            spec.need,
            self.now - queue[0].at,
            self.bound,
            spec.load_seconds,
            replicas=len(self._ready(model)),
            max_replicas=spec.max_replicas,
        )

    def _is_coming(self, model: str) -> bool:
        if any(order.load.model == model for order in self.orders.values()):
            return True
        return any(r.model == model and r.phase is Phase.LOADING for r in self.replicas)

    def _order(self, load: Load) -> None:
        assert not self._is_coming(load.model), f"{load}: it is on its way"
        assert load.node not in self._taken(), f"{load}: the node loads already"
        allowed = self.models[load.model].need.nodes
        assert not allowed or load.node in allowed, f"{load}: it may not run there"
        victims = []
        for name in load.victims:
            (replica,) = (r for r in self._ready(name) if r.node == load.node)
            assert load.node not in replica.spec.pinned_on, f"{load}: {name} is pinned"
            mine, its = self.models[load.model].need.residency, replica.spec.need.residency
            assert its <= mine, f"{load}: {name} is of a higher class"
            victims.append(replica)
        self.orders[load.node] = Order(load, deque(victims))

    def view(self, node: str) -> NodeView:
        """A node's books: memory of victims that still drain counts as the newcomer's."""
        here = [r for r in self.replicas if r.node == node]
        free = [self._free(node, device) for device in range(len(self.nodes[node]))]
        order = self.orders.get(node)
        gone = [*order.victims, order.draining] if order else []
        if order:
            need = self.models[order.load.model].need
            for device in order.load.devices:
                freed = sum(r.spec.need.bytes_each for r in gone if r and device in r.devices)
                free[device] += freed - need.bytes_each
        residents = tuple(self._resident(r) for r in here if r not in gone)
        devices = tuple(
            DeviceView(total, max(0, left))
            for total, left in zip(self.nodes[node], free, strict=True)
        )
        recent = (took for at, where, took in self.history if where == node and self.now - at < 60)
        return NodeView(
            node,
            devices,
            residents,
            files=frozenset(self.models),
            recent_load_seconds=sum(recent),
        )

    def _resident(self, replica: Replica) -> Resident:
        spec = replica.spec
        return Resident(
            replica.model,
            replica.devices,
            spec.need.bytes_each,
            spec.need.residency,
            is_pinned=replica.node in spec.pinned_on,
            is_ready=replica.phase is Phase.READY,
            running=len(replica.ends),
            waiting=len(self.queues[replica.model]),
            idle_seconds=0.0 if replica.ends else self.now - replica.idle_since,
            idle_limit_seconds=spec.idle_limit_seconds,
            ready_seconds=self.now - replica.since,
        )

    # -- rules ---------------------------------------------------------------------------------

    def _check(self) -> None:
        for node, devices in self.nodes.items():
            for device in range(len(devices)):
                assert self._free(node, device) >= 0, f"{node} is overcommitted at {self.now}"
        for name, spec in self.models.items():
            for node in spec.pinned_on:
                assert any(r.node == node for r in self._ready(name)), f"{name} left {node}"
            loading = [r for r in self.replicas if r.model == name and r.phase is Phase.LOADING]
            assert len(loading) <= 1, f"{name} is loaded twice at a time"
