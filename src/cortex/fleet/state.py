"""The live picture of the fleet: a reducer over KV records and heartbeats.

It owns what is known about nodes and models right now, and answers from memory. It decides nothing
(``router`` does) and sends nothing. A node is alive while its heartbeats arrive; a record from an
earlier life of its neuron is ignored.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from protocol import codec, keys
from protocol.fleet import (
    Describe,
    ModelLoad,
    ModelRecord,
    ModelState,
    NodeHeartbeat,
    NodeInfo,
    NodeLive,
)
from protocol.job import PROTOCOL
from protocol.names import InvalidName
from protocol.runtime.waiting import wait_at_most
from protocol.timing import NORMAL, Timing

log = logging.getLogger("fleet")

Clock = Callable[[], float]


_NO_LOAD = ModelLoad()


class Placed(NamedTuple):
    """One model on one living node."""

    record: ModelRecord
    load: ModelLoad


class Node:
    """Everything that is known about one node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.info: NodeInfo | None = None
        self.live: NodeLive | None = None
        self.models: dict[str, ModelRecord] = {}
        self.heartbeat: NodeHeartbeat | None = None
        self.heard_at = float("-inf")
        self.began_at = float("-inf")
        """When its present life began, as far as it was heard."""
        self.why_unusable = ""
        """Why this gateway cannot use it, whatever it offers; empty when it can."""
        self.contradicts_since = float("inf")
        """Since when its heartbeats and its records have not agreed."""


class Fleet:
    """All nodes of the fleet, and questions about them."""

    def __init__(
        self,
        clock: Clock = time.monotonic,
        admitted: frozenset[str] = frozenset(),
        timing: Timing = NORMAL,
    ) -> None:
        """Takes the only nodes that may be used (*admitted*); empty means all of them."""
        self._timing = timing
        self._clock = clock
        self._admitted = admitted
        self._strangers: set[str] = set()
        self._began = clock()
        self._served: dict[str, tuple[str, float]] = {}  # by whom and when a model was last served
        self._nodes: dict[str, Node] = {}
        self._having: dict[str, dict[str, Node]] = {}  # by model, the nodes with a record of it
        self._changed = asyncio.Event()
        self.version = 0
        """Changes with every record, and whenever a node comes or goes."""

    # -- events in -----------------------------------------------------------------------------

    def key_changed(self, key: str, value: bytes | None) -> None:
        """Applies a key of ``cortex_nodes`` that was written, or is gone (None)."""
        try:
            name, kind, model = keys.parse_node_key(key)
            if not self._is_admitted(name):
                return
            node = self._nodes.setdefault(name, Node(name))
            if kind == "info":
                self._introduce(node, codec.read_node_info(value) if value else None)
            elif kind == "live":
                node.live = codec.read_node_live(value) if value else None
            elif value:
                node.models[model] = codec.read_model_record(value)
                self._having.setdefault(model, {})[name] = node
            else:
                node.models.pop(model, None)
                self._having.get(model, {}).pop(name, None)
        except (InvalidName, codec.UnreadableMessage) as error:
            log.warning("ignored %s in %s: %s", key, keys.NODES, error)
            return
        self.version += 1
        self._notify()

    def heard(self, heartbeat: NodeHeartbeat) -> None:
        """Applies the heartbeat of a neuron."""
        if not self._is_admitted(heartbeat.node):
            return
        node = self._nodes.setdefault(heartbeat.node, Node(heartbeat.node))
        now = self._clock()
        if node.heartbeat is None or node.heartbeat.instance != heartbeat.instance:
            node.began_at = now
            self.version += 1
        node.heartbeat = heartbeat
        node.heard_at = now
        for model in heartbeat.models:
            self._served[model] = (node.name, node.heard_at)
        if self._agrees(node):
            node.contradicts_since = float("inf")
        else:
            node.contradicts_since = min(now, node.contradicts_since)
        self._notify()

    def described(self, said: Describe) -> None:
        """Applies what a neuron says of itself, where its records are lost."""
        node = self._nodes.get(said.info.node)
        if node is None or node.heartbeat is None:
            return
        if said.info.instance != node.heartbeat.instance:
            return
        self._introduce(node, said.info)
        node.live = said.live
        for record in said.models:
            node.models[record.model] = record
            self._having.setdefault(record.model, {})[node.name] = node
        self.version += 1
        self._notify()

    def _introduce(self, node: Node, info: NodeInfo | None) -> None:
        node.info = info
        why = _why_not_understood(info) if info is not None else ""
        if why and why != node.why_unusable:
            log.error("node %s is not used: %s", node.name, why)
        node.why_unusable = why

    def contradictory(self, seconds: float) -> list[str]:
        """The living nodes whose heartbeats and records have not agreed for that long."""
        now = self._clock()
        return [n.name for n in self.alive() if now - n.contradicts_since >= seconds]

    def _agrees(self, node: Node) -> bool:
        """Whether a node's records are those of its present life, and show what it runs."""
        beat = node.heartbeat
        if beat is None or node.info is None or node.info.instance != beat.instance:
            return False
        states = {record.model: record.state for record in self.records_of(node)}
        ready = {model for model, state in states.items() if state is ModelState.READY}
        return ready <= beat.models.keys() and all(
            states.get(model) in (ModelState.READY, ModelState.DRAINING) for model in beat.models
        )

    def _is_admitted(self, name: str) -> bool:
        if not self._admitted or name in self._admitted:
            return True
        if name not in self._strangers:
            self._strangers.add(name)
            log.warning("node %s is not in [[neurons]] of cortex.toml, and not used", name)
        return False

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, timeout: float) -> None:
        """Returns at the next event, or after *timeout* seconds."""
        await wait_at_most(self._changed, timeout)

    # -- questions -----------------------------------------------------------------------------

    def is_alive(self, node: Node) -> bool:
        """Whether the node's heartbeats arrive."""
        return self._clock() - node.heard_at < self._timing.node_gone_seconds

    def alive(self) -> Iterator[Node]:
        """The nodes that are alive and can be used."""
        return (n for n in self._nodes.values() if self.is_alive(n) and not n.why_unusable)

    @property
    def unusable(self) -> dict[str, str]:
        """Why living nodes cannot be used, by name."""
        nodes = (node for node in self._nodes.values() if self.is_alive(node))
        return {node.name: node.why_unusable for node in nodes if node.why_unusable}

    def models(self) -> list[str]:
        """Every model that a living node has or could load, sorted by name."""
        return sorted(
            model
            for model, nodes in self._having.items()
            if any(self._record(node, model) for node in nodes.values())
        )

    def __contains__(self, model: object) -> bool:
        """Whether a living node has a model, or could load it."""
        return isinstance(model, str) and any(True for _ in self._of(model))

    @property
    def is_unsettled(self) -> bool:
        """Whether some nodes may not have been heard yet because this gateway has just started,
        or have not yet said what they are."""
        if self._clock() - self._began < self._timing.all_heard_seconds:
            return True
        return any(node.info is None for node in self.alive())

    @property
    def misses_somebody(self) -> bool:
        """Whether a node has fallen silent a moment ago and may be back in another."""
        return any(self._is_missed(node) for node in self._nodes.values())

    def misses(self, model: str) -> bool:
        """Whether a node that fell silent a moment ago has the model or could load it."""
        return any(self._is_missed(node) for node in self._having.get(model, {}).values())

    def _is_missed(self, node: Node) -> bool:
        silence = self._clock() - node.heard_at
        return silence < self._timing.remember_seconds and not self.is_alive(node)

    def remembers(self, model: str) -> str:
        """The node that had a model until a moment ago and may be back soon; empty if there is
        none."""
        name, at = self._served.get(model, ("", float("-inf")))
        now, node = self._clock(), self._nodes.get(name)
        if node is None or now - at >= self._timing.remember_seconds:
            return ""
        is_settled = now - node.began_at >= self._timing.settled_seconds
        has_unloaded_it = self.is_alive(node) and is_settled
        return "" if has_unloaded_it else name

    def records(self, model: str) -> list[ModelRecord]:
        """The records that living nodes have of a model, loaded or not."""
        return [record for _, record in self._of(model)]

    def records_of(self, node: Node) -> list[ModelRecord]:
        """The records of a node's models, loaded or not, without those of an earlier life."""
        instance = node.heartbeat.instance if node.heartbeat else None
        return [record for record in node.models.values() if record.instance == instance]

    def placed(self, model: str) -> list[Placed]:
        """The living nodes that have a model, or are loading it."""
        return [
            Placed(record, node.heartbeat.models.get(model, _NO_LOAD))
            for node, record in self._of(model)
            if node.heartbeat and record.state is not ModelState.ABSENT
        ]

    def ready(self, model: str) -> list[Placed]:
        """The nodes on which a model can take jobs now."""
        return [p for p in self.placed(model) if p.record.state is ModelState.READY]

    def free_slots(self, model: str) -> int:
        """The free slots of all ready nodes, by their last heartbeats."""
        return sum(max(0, p.load.free_slots - p.load.queued) for p in self.ready(model))

    def slots(self, model: str) -> int:
        """The number of slots of all ready nodes."""
        return sum(p.record.slots for p in self.ready(model))

    def node(self, name: str) -> Node | None:
        """Looks a node up by name; None if it is unknown."""
        return self._nodes.get(name)

    def alive_names(self) -> set[str]:
        """The names of the nodes that are alive."""
        return {node.name for node in self.alive()}

    def node_of_instance(self, instance: str) -> str | None:
        """Names the node that a process instance belongs to."""
        for node in self._nodes.values():
            if node.heartbeat and node.heartbeat.instance == instance:
                return node.name
        return None

    def _of(self, model: str) -> Iterator[tuple[Node, ModelRecord]]:
        """The living nodes with their records of a model."""
        return (
            (node, record)
            for node in self._having.get(model, {}).values()
            if (record := self._record(node, model))
        )

    def _record(self, node: Node, model: str) -> ModelRecord | None:
        """The record of a model from a living node's present life."""
        record = node.models.get(model)
        if record is None or node.heartbeat is None or not self.is_alive(node):
            return None
        if node.why_unusable:
            return None
        return record if record.instance == node.heartbeat.instance else None


def _why_not_understood(info: NodeInfo) -> str:
    """Why a node and this gateway cannot talk; empty when they can."""
    if info.protocol_min <= PROTOCOL <= info.protocol_max:
        return ""
    spoken = str(info.protocol_min)
    if info.protocol_max != info.protocol_min:
        spoken += f" to {info.protocol_max}"
    older = "this gateway" if info.protocol_min > PROTOCOL else "the node"
    return f"it speaks protocol {spoken}, and this gateway {PROTOCOL}. Upgrade {older}."
