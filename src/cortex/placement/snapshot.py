"""The fleet as placement sees it: nodes with their books, and what is wanted of them.

It turns records, heartbeats, profiles, pins and demand into the plain data of ``fit`` and
``planner``, and remembers what no record says: since when a model has been ready, what was loaded
lately, which order is under way. It decides nothing.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet, Node
from cortex.placement.demand import Demand, Demands
from cortex.placement.fit import DeviceView, Need, NodeView, ResidentView
from cortex.placement.pins import OperatorIntent
from cortex.placement.planner import Want
from protocol.fleet import Device, DeviceKind, ModelLoad, ModelRecord, ModelState

RECENT_SECONDS = 60.0
"""Loads within this time count as recent."""
DRAIN_SECONDS = 30.0
USUAL_LOAD_SECONDS = 5.0
"""Assumed load time of a model that was never loaded, to which the time for its bytes is added."""
BYTES_PER_SECOND = 1e9
STANDING_BOUND_SECONDS = 60.0
"""How long a pinned model, or one below its minimum, may stay unloaded beside busy ones."""

_HOLDING = (ModelState.LOADING, ModelState.READY, ModelState.DRAINING)
Key = tuple[str, str]
"""A node and a model."""


class Snapshot(NamedTuple):
    """The fleet at one moment."""

    nodes: tuple[NodeView, ...]
    wants: tuple[Want, ...]
    taken: frozenset[str]
    """Nodes that are about to load a model, so that its memory is not in the books yet."""


def has_only_cpu(devices: Sequence[Device]) -> bool:
    """Whether all devices that models may use are CPUs."""
    return all(device.kind is DeviceKind.CPU for device in devices if device.budget_bytes)


class SnapshotBuilder:
    """Makes one gateway's snapshots."""

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        demands: Demands,
        intent: OperatorIntent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._demands = demands
        self._intent = intent
        self._clock = clock
        self._ready_since: dict[Key, float] = {}
        self._loads: deque[tuple[float, str, float]] = deque()
        self._free_loads: set[Key] = set()
        self._missing_since: dict[Key, float] = {}
        self._known: set[str] = set()  # nodes that were alive at the last look
        # seconds spent on recent loads that somebody may have missed a model for, by node
        self._recent: dict[str, float] = defaultdict(float)
        self._ready: Counter[str] = Counter()  # ready replicas, as of the last look
        self._asked: frozenset[str] = frozenset()  # all models that anybody may ask for

    @property
    def version(self) -> object:
        """Changes with everything except slot loads and ages."""
        return self._fleet.version, self._catalogue.version, self._intent.version

    def need(self, model: str) -> Need:
        """Returns what a model requires of a node."""
        profile = self._catalogue.profile(model)
        return Need(
            model,
            devices=profile.min_devices,
            min_device_bytes=profile.min_device_vram_mb << 20,
            residency=profile.residency,
            nodes=frozenset(profile.nodes),
        )

    def look(self, refused: dict[Key, str] | None = None) -> Snapshot:
        """Takes a snapshot; *refused* are loads that the caller knows to be pointless now."""
        self._remember()
        demands = self._demands.by_model()
        models = self._fleet.models()
        self._ready = Counter({model: len(self._fleet.ready(model)) for model in models})
        self._asked = frozenset((*models, *self._catalogue.models, *self._intent.pins, *demands))
        nodes = tuple(self._node(node, demands, refused or {}) for node in self._fleet.alive())
        taken = frozenset(
            node.name
            for node in self._fleet.alive()
            if any(map(_is_unsettled, self._fleet.records_of(node)))
        )
        return Snapshot(nodes, tuple(self._wants(nodes, demands)), taken)

    def drain_seconds(self, model: str) -> float:
        """How long streams may stay on a replica that is being unloaded before they move, which
        needs another replica; 0 means for as long as they take."""
        return DRAIN_SECONDS if len(self._fleet.ready(model)) > 1 else 0.0

    def load_is_free(self, node: str, model: str) -> None:
        """Does not count a load that begins now: nobody misses what goes for it."""
        self._free_loads.add((node, model))

    def is_coming(self, model: str) -> bool:
        """Whether some node is loading or fetching it."""
        return any(
            placed.record.state in (ModelState.LOADING, ModelState.FETCHING)
            for placed in self._fleet.placed(model)
        )

    # -- nodes ---------------------------------------------------------------------------------

    def _node(self, node: Node, demands: dict[str, Demand], refused: dict[Key, str]) -> NodeView:
        records = self._fleet.records_of(node)
        held = [r for r in records if r.state in _HOLDING]
        beat = node.heartbeat
        assert beat is not None, "it is alive"
        loads = {r.model: beat.models.get(r.model, ModelLoad()) for r in held}
        slots = sum(r.slots for r in held)
        busy = sum(load.running + load.queued for load in loads.values())
        return NodeView(
            node.name,
            tuple(self._devices(node, held)),
            tuple(self._resident(r, loads[r.model], demands, beat.loads) for r in held),
            files=frozenset(r.model for r in records if r.has_files),
            warm=frozenset(r.model for r in records if r.is_warm),
            sizes={r.model: r.estimate.bytes_each for r in records if r.estimate},
            ranks_share=node.info is not None and has_only_cpu(node.info.devices),
            refused={
                **{
                    r.model: r.error.message for r in records if r.error and r.state not in _HOLDING
                },
                **{model: why for (name, model), why in refused.items() if name == node.name},
                **self._unknown_to(node, records),
            },
            failed=frozenset(r.model for r in records if r.state is ModelState.FAILED),
            broken=frozenset(r.model for r in records if r.failed_before),
            busyness=busy / slots if slots else 0.0,
            is_draining=beat.draining or self._intent.is_drained(node.name),
            recent_load_seconds=self._recent[node.name],
            loading=sum(r.state is ModelState.LOADING for r in held),
        )

    def _unknown_to(self, node: Node, records: list[ModelRecord]) -> dict[str, str]:
        """Lists models that this node does not offer, or of which it is not known whether they
        fit."""
        if node.info is None:
            return dict.fromkeys(self._asked, "it has not reported its devices yet")
        known = {record.model for record in records}
        return dict.fromkeys(
            self._asked - known, "it has neither the model's files nor a source for them"
        )

    def _devices(self, node: Node, held: list[ModelRecord]) -> Iterator[DeviceView]:
        usage = node.live.usage if node.live else ()
        for position, device in enumerate(node.info.devices if node.info else ()):
            others = usage[position].others_bytes if position < len(usage) else 0
            usable = max(0, min(device.budget_bytes, device.memory_bytes - others))
            taken = sum(r.reserved_bytes for r in held if position in r.devices)
            yield DeviceView(device.budget_bytes, usable - taken)

    def _resident(
        self, record: ModelRecord, load: ModelLoad, demands: dict[str, Demand], loads: int
    ) -> ResidentView:
        model, node = record.model, record.node
        profile = self._catalogue.profile(model)
        waiting = demands[model].waiting if model in demands else 0
        return ResidentView(
            model,
            record.devices,
            record.reserved_bytes,
            profile.residency,
            is_pinned=node in profile.pinned_on or node in self._intent.pinned_on(model),
            is_ready=record.state is ModelState.READY,
            running=load.running + load.queued,
            waiting=waiting,
            idle_seconds=load.idle_seconds,
            idle_allowed_seconds=profile.idle_seconds,
            ready_seconds=self._clock() - self._ready_since.get((node, model), self._clock()),
            loads_since=loads - record.loads,
            replicas=self._ready[model],
            min_replicas=profile.min_replicas,
            asked_for=record.asked_for,
        )

    def _remember(self) -> None:
        """Records which models have become ready, and how long they took to load."""
        now, ready, alive = self._clock(), set(), set()
        for node in self._fleet.alive():
            alive.add(node.name)
            for record in self._fleet.records_of(node):
                key = (node.name, record.model)
                if record.state is ModelState.READY:
                    ready.add(key)
                    if key not in self._ready_since:
                        self._ready_since[key] = now
                        is_new = node.name in self._known  # otherwise it may be old
                        if is_new and key not in self._free_loads:
                            self._loads.append((now, node.name, record.load_seconds))
                        self._free_loads.discard(key)
                elif record.state is ModelState.FAILED:
                    self._free_loads.discard(key)
        self._known = alive
        for key in set(self._ready_since) - ready:
            del self._ready_since[key]
        while self._loads and now - self._loads[0][0] > RECENT_SECONDS:
            self._loads.popleft()
        self._recent = defaultdict(float)
        for _, name, took in self._loads:
            self._recent[name] += took

    # -- wants ---------------------------------------------------------------------------------

    def _wants(self, nodes: tuple[NodeView, ...], demands: dict[str, Demand]) -> Iterator[Want]:
        intent = self._standing_wants(nodes)
        missing = {(next(iter(want.need.nodes), ""), want.need.model) for want in intent}
        now = self._clock()
        self._missing_since = {key: self._missing_since.get(key, now) for key in missing}
        for want in intent:
            since = self._missing_since[next(iter(want.need.nodes), ""), want.need.model]
            yield want._replace(waited_seconds=now - since)
        asked = {want.need.model for want in intent}
        for model, demand in demands.items():
            if model not in asked and not self.is_coming(model):
                yield Want(
                    self.need(model),
                    demand.waited_seconds,
                    demand.bound_seconds,
                    self._load_seconds(model),
                    replicas=len(self._fleet.ready(model)),
                    max_replicas=self._catalogue.profile(model).max_replicas,
                    released=demand.released,
                )

    def _standing_wants(self, nodes: tuple[NodeView, ...]) -> list[Want]:
        """Lists pins and minimum replicas that are not met."""
        wants = []
        alive = {node.name: node for node in nodes if not node.is_draining}
        known = {*self._catalogue.models, *self._intent.pins}
        for model in sorted(known):
            profile = self._catalogue.profile(model)
            pinned = {*profile.pinned_on, *self._intent.pinned_on(model)} & set(alive)
            have = {p.record.node for p in self._fleet.placed(model) if p.record.state in _COMING}
            need, seconds = self.need(model), self._load_seconds(model)
            for name in sorted(pinned - have):
                own = need._replace(nodes=frozenset({name}))
                wants.append(Want(own, 0.0, STANDING_BOUND_SECONDS, seconds, why="pinned"))
            if not pinned - have and len(have) < profile.min_replicas:
                why = f"{len(have)} of at least {profile.min_replicas} replicas"
                wants.append(Want(need, 0.0, STANDING_BOUND_SECONDS, seconds, why=why))
        return wants

    def _load_seconds(self, model: str) -> float:
        """Estimates how long loading *model* takes."""
        records = self._fleet.records(model)
        if took := [r.load_seconds for r in records if r.load_seconds]:
            return max(took)
        size = max((r.estimate.weight_bytes for r in records if r.estimate), default=0)
        return USUAL_LOAD_SECONDS + size / BYTES_PER_SECOND


def _is_unsettled(record: ModelRecord) -> bool:
    """Whether a model is being loaded and its memory has not been reserved yet."""
    return record.state is ModelState.LOADING and not record.reserved_bytes


_COMING = (ModelState.FETCHING, ModelState.LOADING, ModelState.READY)
