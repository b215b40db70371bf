"""A fleet as the planner sees it, in simulated time: nodes fetch, load, serve and drain as neurons
do; they die and come back, loads fail, operators drain nodes.

It keeps its own books of memory and checks them at every step; what the planner is told comes from
them. No clock, no bus.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from cortex.placement.eviction import Strategy
from cortex.placement.fit import DeviceView, NodeView, ResidentView
from cortex.placement.planner import (
    LOADS_AT_ONCE,
    LoadAction,
    PullAction,
    RecycleAction,
    UnloadAction,
    Want,
    plan,
)
from tests.support import placement_rules as rules
from tests.support.placement_clients import Client, Clients
from tests.support.placement_parts import (
    COOLING_SECONDS,
    SETTLE_SECONDS,
    STARTING,
    TICK,
    Ended,
    Event,
    Happening,
    ModelSpec,
    Order,
    Phase,
    Replica,
    Request,
    Stream,
    Waiting,
)


class World:
    """Nodes by name with the bytes of their devices; models by name."""

    def __init__(
        self,
        nodes: dict[str, tuple[int, ...]],
        models: dict[str, ModelSpec],
        *,
        bound_seconds: float = 30.0,
        strategy: Strategy = Strategy.LRU,
        defrag_after: int = 0,
        events: Sequence[Event] = (),
    ) -> None:
        self.nodes = nodes
        self.models = models
        self.bound = bound_seconds
        self.strategy = strategy
        self.defrag_after = defrag_after
        self.events = deque(sorted(events, key=lambda event: event.at))
        self.now = 0.0
        self.alive = set(nodes)
        self.drained: set[str] = set()
        self.disturbed: set[str] = set()
        """Nodes that have died or were drained: pins may have left them."""
        self.replicas: list[Replica] = []
        self.orders: dict[tuple[str, str], Order] = {}
        self.files = {
            name: set(nodes if spec.files is None else spec.files) for name, spec in models.items()
        }
        self.fetches: dict[str, tuple[str, float]] = {}
        """Where a model is fetched, and until when."""
        self.cooling: dict[tuple[str, str], float] = {}
        self.failures: Counter[str] = Counter()
        self.queues: dict[str, deque[Waiting]] = {name: deque() for name in models}
        self.missing_since: dict[tuple[str, str], float] = {}
        self.ended: list[Ended] = []
        self.running = 0
        self.loads: Counter[str] = Counter()
        self.node_loads: Counter[str] = Counter()
        self.clients = Clients(lambda: self.now)
        self.history: list[tuple[float, str, float]] = []
        """When, where and for how long something was loaded."""
        for spec in models.values():
            for node in spec.pinned_on:
                self.replicas.append(Replica(spec, node, (0,), Phase.READY, 0.0))

    def run(
        self, requests: list[Request], clients: Sequence[Client] = (), limit: float = 1e6
    ) -> None:
        """Until every request has ended, also those of *clients*; raises ``AssertionError`` for a
        broken rule."""
        coming = deque(sorted(requests))
        self.clients.begin(clients)
        while self.clients or coming or self.events or self.running or any(self.queues.values()):
            assert self.now < limit, f"they never end: {self.queues}"
            while coming and coming[0].at <= self.now:
                self._arrives(coming.popleft())
            for request in self.clients.due():
                self._arrives(request)
            self._step()

    def _arrives(self, request: Request) -> None:
        self.queues[request.model].append(Waiting(request, self.now))
        self.clients.sent(request)

    def settle(self) -> None:
        """Time passes after :meth:`run`, until nothing should be under way any more."""
        rest = self.now + SETTLE_SECONDS
        while self.now < rest:
            self._step()
        assert not self.orders, f"it never ends: {self.orders}"
        assert not self.fetches, f"it never ends: {self.fetches}"
        for replica in self.replicas:
            what = f"{replica.model} on {replica.node}"
            assert replica.phase is Phase.READY, f"{what} stays {replica.phase}"
            assert replica.node not in self.drained, f"{what}, which is drained"
            assert not self._is_expired(replica), f"{what} stays, idle as it is"
            since = self.node_loads[replica.node] - replica.loads_at
            assert not 0 < self.defrag_after <= since, f"{what} is never started anew"

    def _step(self) -> None:
        while self.events and self.events[0].at <= self.now:
            self._happens(self.events.popleft())
        self._serve()
        self._refuse()
        self._plan()
        self._work()
        rules.hold(self)
        self.now += TICK

    # -- what neurons, gateways and people do --------------------------------------------------

    def _happens(self, event: Event) -> None:
        self.disturbed.add(event.node)
        match event.what:
            case Happening.DIES:
                self._die(event.node)
            case Happening.RETURNS:
                self.alive.add(event.node)
            case Happening.DRAINED:
                self.drained.add(event.node)
            case Happening.UNDRAINED:
                self.drained.discard(event.node)

    def _die(self, node: str) -> None:
        """Its streams wait again, as new ones."""
        self.alive.discard(node)
        self.orders = {key: order for key, order in self.orders.items() if key[0] != node}
        self.fetches = {m: fetch for m, fetch in self.fetches.items() if fetch[0] != node}
        self.node_loads[node] = 0
        for replica in [r for r in self.replicas if r.node == node]:
            self.replicas.remove(replica)
            for stream in replica.streams:
                self.ended.remove(stream.ended)
                self.running -= 1
                waiting = Waiting(stream.ended.request, self.now)
                self.queues[replica.model].append(waiting)

    def ready(self, model: str) -> list[Replica]:
        return [r for r in self.replicas if r.model == model and r.phase is Phase.READY]

    def _serve(self) -> None:
        for replica in self.replicas:
            if replica.streams:
                running = [s for s in replica.streams if s.until > self.now]
                for stream in replica.streams:
                    if stream.until <= self.now:
                        self.clients.over(stream.ended.request)
                self.running -= len(replica.streams) - len(running)
                replica.streams = running
                if not replica.streams:
                    replica.idle_since = self.now
        for model, queue in self.queues.items():
            for replica in self.ready(model):
                while queue and len(replica.streams) < replica.spec.slots:
                    request, since = queue.popleft()
                    ended = Ended(request, self.now - since, is_served=True)
                    replica.streams.append(Stream(self.now + request.seconds, ended))
                    self.ended.append(ended)
                    self.running += 1

    def _refuse(self) -> None:
        for model, queue in self.queues.items():
            while queue and self.now - queue[0].since > self.bound and not self.ready(model):
                request, since = queue.popleft()
                self.ended.append(Ended(request, self.now - since, is_served=False))
                self.clients.over(request)

    def _work(self) -> None:
        """Nodes go on with their orders."""
        for model, (node, until) in list(self.fetches.items()):
            if self.now >= until:
                del self.fetches[model]
                self.files[model].add(node)
        for replica in list(self.replicas):
            if replica.phase is Phase.DRAINING and not replica.streams:
                self.replicas.remove(replica)
            elif replica.phase in STARTING and self.now >= replica.since:
                self._started(replica)
        for (node, _), order in list(self.orders.items()):
            if order.draining not in self.replicas:
                self._go_on(node, order)

    def _started(self, replica: Replica) -> None:
        if replica.phase is Phase.LOADING and self.failures[replica.model] < replica.spec.fails:
            self.failures[replica.model] += 1
            self.cooling[replica.node, replica.model] = self.now + COOLING_SECONDS
            self.replicas.remove(replica)
            return
        replica.phase, replica.since, replica.idle_since = Phase.READY, self.now, self.now

    def _go_on(self, node: str, order: Order) -> None:
        """The load begins when it fits, else the next victim drains."""
        spec = self.models[order.load.model]
        if all(self.free(node, d) >= spec.need.bytes_each for d in order.load.devices):
            until = self.now + spec.load_seconds
            self.node_loads[node] += 1
            replica = Replica(
                spec, node, order.load.devices, Phase.LOADING, until, self.node_loads[node]
            )
            self.replicas.append(replica)
            self.loads[spec.need.model] += 1
            if not order.load.is_free:
                self.history.append((self.now, node, spec.load_seconds))
            del self.orders[node, order.load.model]
        elif order.victims:
            order.draining = order.victims.popleft()
            order.draining.phase = Phase.DRAINING
        else:
            raise AssertionError(f"{order.load} does not fit after its victims went")

    def free(self, node: str, device: int) -> int:
        held = sum(
            r.spec.need.bytes_each for r in self.replicas if r.node == node and device in r.devices
        )
        return self.nodes[node][device] - held

    # -- what the planner says -----------------------------------------------------------------

    def _plan(self) -> None:
        wants = [*rules.standing_wants(self), *self._asked()]
        nodes = [self.view(node) for node in self.nodes if node in self.alive]
        made = plan(wants, nodes, self._taken(), self.strategy, self.defrag_after)
        for load in made.loads:
            self._load(load)
        for pull in made.pulls:
            self._pull(pull)
        for unload in made.unloads:
            self._unload(unload)
        for recycle in made.recycles:
            self._recycle(recycle)

    def _load(self, load: LoadAction) -> None:
        spec = self.models[load.model]
        assert not self.is_coming(load.model), f"{load}: it is on its way"
        under_way = self._loads_on(load.node)
        assert under_way < LOADS_AT_ONCE, f"{load}: {under_way} loads are under way"
        assert not (load.victims and under_way), f"{load}: victims go beside another load"
        assert load.node in self.files[load.model], f"{load}: it has no files"
        rules.may_go_to(self, load.node, load.model)
        victims = []
        for name in load.victims:
            (replica,) = (r for r in self.ready(name) if r.node == load.node)
            rules.may_leave(self, replica)
            its = replica.spec.need.residency
            assert its <= spec.need.residency, f"{load}: {name} is of a higher class"
            victims.append(replica)
        self.orders[load.node, load.model] = Order(load, deque(victims))

    def _pull(self, pull: PullAction) -> None:
        assert not self.is_coming(pull.model), f"{pull}: it is on its way"
        assert not self.files[pull.model] & self.alive, f"{pull}: there are files already"
        rules.may_go_to(self, pull.node, pull.model)
        until = self.now + self.models[pull.model].fetch_seconds
        self.fetches[pull.model] = (pull.node, until)

    def _unload(self, unload: UnloadAction) -> None:
        for replica in self.ready(unload.model):
            if replica.node == unload.node:
                is_drained = unload.node in self.drained
                assert is_drained or self._is_expired(replica), f"{unload}: for nothing"
                if not is_drained:
                    rules.may_leave(self, replica)
                replica.phase = Phase.DRAINING

    def _recycle(self, recycle: RecycleAction) -> None:
        assert not self._loads_on(recycle.node), f"{recycle}: the node loads something"
        (replica,) = (r for r in self.ready(recycle.model) if r.node == recycle.node)
        assert not replica.streams, f"{recycle}: it has streams"
        since = self.node_loads[recycle.node] - replica.loads_at
        assert 0 < self.defrag_after <= since, f"{recycle}: too early"
        replica.loads_at += recycle.loads
        replica.phase, replica.since = Phase.RECYCLING, self.now + replica.spec.load_seconds

    # -- what the planner is told --------------------------------------------------------------

    def _taken(self) -> set[str]:
        """Nodes that make room for something."""
        return {node for node, _ in self.orders}

    def _loads_on(self, node: str) -> int:
        """Loads that are under way on a node."""
        ordered = sum(where == node for where, _ in self.orders)
        return ordered + sum(r.node == node and r.phase in STARTING for r in self.replicas)

    def _asked(self) -> Iterator[Want]:
        for model, spec in self.models.items():
            queue = self.queues[model]
            if queue and not self.is_coming(model) and not self._is_standing(model):
                yield Want(
                    spec.need,
                    self.now - queue[0].since,
                    self.bound,
                    spec.load_seconds,
                    replicas=len(self.ready(model)),
                    max_replicas=spec.max_replicas,
                    released=self.clients.released((one.request for one in queue), model),
                )

    def _is_standing(self, model: str) -> bool:
        return any(wanted == model for wanted, _ in self.missing_since)

    def is_coming(self, model: str) -> bool:
        if model in self.fetches or any(o.load.model == model for o in self.orders.values()):
            return True
        return any(r.model == model and r.phase in STARTING for r in self.replicas)

    def view(self, node: str) -> NodeView:
        """A node's books: memory of victims that still drain counts as the newcomer's."""
        here = [r for r in self.replicas if r.node == node]
        free = [self.free(node, device) for device in range(len(self.nodes[node]))]
        orders = [order for (where, _), order in self.orders.items() if where == node]
        gone = [victim for order in orders for victim in (*order.victims, order.draining)]
        for order in orders:
            need = self.models[order.load.model].need
            for device in order.load.devices:
                its = (*order.victims, order.draining)
                freed = sum(r.spec.need.bytes_each for r in its if r and device in r.devices)
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
            files=frozenset(model for model, nodes in self.files.items() if node in nodes),
            refused={
                model: "it failed"
                for (where, model), until in self.cooling.items()
                if where == node and until > self.now
            },
            is_draining=node in self.drained,
            recent_load_seconds=sum(recent),
            loading=sum(r.phase in STARTING for r in here),
        )

    def _resident(self, replica: Replica) -> ResidentView:
        spec = replica.spec
        return ResidentView(
            replica.model,
            replica.devices,
            spec.need.bytes_each,
            spec.need.residency,
            is_pinned=replica.node in spec.pinned_on,
            is_ready=replica.phase is Phase.READY,
            running=len(replica.streams),
            waiting=len(self.queues[replica.model]),
            idle_seconds=self._idle_seconds(replica),
            idle_allowed_seconds=spec.idle_limit_seconds,
            ready_seconds=self.now - replica.since,
            loads_since=self.node_loads[replica.node] - replica.loads_at,
            replicas=len(self.ready(replica.model)),
            min_replicas=spec.min_replicas,
        )

    def _idle_seconds(self, replica: Replica) -> float:
        return 0.0 if replica.streams else self.now - replica.idle_since

    def _is_expired(self, replica: Replica) -> bool:
        """By its idle time, where it may leave."""
        spec = replica.spec
        is_kept = replica.node in spec.pinned_on
        is_kept |= len(self.ready(replica.model)) <= spec.min_replicas
        return not is_kept and 0 < spec.idle_limit_seconds <= self._idle_seconds(replica)
