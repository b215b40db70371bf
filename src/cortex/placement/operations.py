"""What operators can tell the fleet through any gateway: load, unload, pull, pin, drain, add.

Loads, unloads and pulls are orders to a node, checked by the same placement as the placer's own;
pins and drained nodes are intents that stand in KV, and the placer carries them out. Raises
``FleetError`` for what cannot be done, with what would help. Must not know HTTP.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.identity import GatewayIdentity
from cortex.placement.eviction import Strategy, rank_victims
from cortex.placement.fit import (
    Fit,
    FitResult,
    NodeView,
    ResidentView,
    may_displace,
    place,
    reasons,
)
from cortex.placement.node_orders import NodeOrders, Order
from cortex.placement.pins import OperatorIntent
from cortex.placement.snapshot import SnapshotBuilder
from protocol import codec, keys
from protocol.bus import KvBucket
from protocol.catalogue import CatalogueRecord, Origin, Profile
from protocol.errors import ErrorCode, FleetError
from protocol.fleet import ModelState
from protocol.orders import LoadOrder, PullOrder, UnloadOrder, Victim
from protocol.placement import Drain, Pin

_COMING = (ModelState.FETCHING, ModelState.LOADING, ModelState.READY)


class Planned(NamedTuple):
    """Where a model would be loaded, and why not elsewhere."""

    model: str
    answer: FitResult
    lines: tuple[str, ...] = ()
    """The breakdown of its memory, line by line."""
    already: tuple[str, ...] = ()
    """Nodes that have it or are loading it, so that nothing is to be done."""

    @property
    def fit(self) -> Fit | None:
        """The best fit; None when it fits nowhere."""
        return self.answer.fits[0] if self.answer.fits else None


class Operations:
    """The operators' verbs at one gateway."""

    def __init__(
        self,
        identity: GatewayIdentity,
        *,
        fleet: Fleet,
        catalogue: Catalogue,
        intent: OperatorIntent,
        snapshots: SnapshotBuilder,
        strategy: Strategy,
    ) -> None:
        self._bus = bus = identity.bus
        self._instance = identity.instance
        self._fleet = fleet
        self._catalogue = catalogue
        self._intent = intent
        self._snapshots = snapshots
        self._strategy = strategy
        self._bucket = KvBucket(bus, keys.PLACEMENT)
        self._orders = NodeOrders(bus)

    # -- loads ---------------------------------------------------------------------------------

    def plan(self, name: str, node: str = "") -> Planned:
        """Plans a load without carrying it out."""
        model = self._known(name)
        if node:
            self._check_node(node)
        need = self._snapshots.need(model)
        nodes = [_forgiving(n) for n in self._snapshots.look().nodes if node in ("", n.name)]

        def may_go(_: NodeView, resident: ResidentView) -> bool:
            return may_displace(need, resident)

        answer = place(need, nodes, lambda rs: rank_victims(rs, self._strategy), may_go)
        chosen = answer.fits[0].node if answer.fits else node
        records = [r for r in self._fleet.records(model) if r.estimate and chosen in ("", r.node)]
        lines = records[0].estimate.lines if records and records[0].estimate else ()
        return Planned(model, answer, lines)

    async def load(self, name: str, node: str = "", source: str = "") -> Planned:
        """Loads a model on a node, evicting others if necessary; does nothing where it is loaded
        already."""
        if source:
            return await self._load_from(name, node, source)
        planned = self.plan(name, node)
        already = tuple(
            placed.record.node
            for placed in self._fleet.placed(planned.model)
            if placed.record.state in _COMING and node in ("", placed.record.node)
        )
        if already:
            return planned._replace(already=already)
        fit = planned.fit
        if fit is None:
            raise FleetError(ErrorCode.MODEL_UNAVAILABLE, _why_not(planned))
        profile = self._catalogue.listed(planned.model)
        victims = tuple(
            Victim(victim.model, self._snapshots.drain_seconds(victim.model))
            for victim in fit.victims
        )
        # before the node has the files, it does not know what the model takes
        devices = fit.devices if fit.has_files else ()
        said = LoadOrder(planned.model, "", profile, devices, victims, why="an operator")
        await self._order(fit.node, said)
        return planned

    async def _load_from(self, name: str, node: str, source: str) -> Planned:
        """Loads from a source that the node may not know yet: the node finds out what that
        takes."""
        model = self._catalogue.resolve(name, self._fleet)
        node = node or self._only_node()
        self._check_node(node)
        profile = self._catalogue.listed(model)
        said = LoadOrder(model, source, profile, why="an operator")
        await self._order(node, said)
        return Planned(model, FitResult((Fit(node, (), (), 0, False, 0.0),), ()))

    async def unload(
        self, name: str, node: str = "", drain_seconds: float = 0.0, *, force: bool = False
    ) -> tuple[str, list[str]]:
        """Unloads a model; returns it and the nodes that unload it."""
        model = self._catalogue.resolve(name, self._fleet)
        if node:
            self._check_node(node)
        nodes = sorted(
            p.record.node for p in self._fleet.placed(model) if node in ("", p.record.node)
        )
        if not nodes:
            where = f"Node {node} does not have" if node else "No node has"
            loaded = ", ".join(m for m in self._fleet.models() if self._fleet.placed(m)) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{where} the model {name!r} loaded. Loaded models: {loaded}.",
                param="model",
            )
        pinned = sorted({*self._pinned_on(model)} & set(nodes))
        if pinned and not force:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"{model} is pinned on {', '.join(pinned)}. Unpin it first, or unload it with "
                "force; as long as it is pinned, it will be loaded again.",
                param="force",
            )
        for one in nodes:
            said = UnloadOrder(model, drain_seconds, why="an operator")
            await self._order(one, said)
        return model, nodes

    async def pull(self, name: str, node: str = "", source: str = "") -> tuple[str, list[str]]:
        """Fetches a model's files; returns the model and the nodes that fetch them."""
        model = self._catalogue.resolve(name, self._fleet)
        nodes = [node] if node else sorted(self._fleet.alive_names())
        if not nodes:
            self._only_node()
        for one in nodes:
            self._check_node(one)
        profile = self._catalogue.listed(model)
        for one in nodes:
            said = PullOrder(model, source, profile)
            await self._order(one, said)
        return model, nodes

    # -- the catalogue -------------------------------------------------------------------------

    async def add(self, profile: Profile) -> None:
        """Adds a profile to the catalogue, where it survives restarts. Refuses names that already
        lead elsewhere."""
        self._check_is_not_of_the_file(profile.id)
        for alias in profile.aliases:
            there = self._catalogue.owner(alias)
            if there not in ("", profile.id) or alias in self._catalogue.models:
                raise FleetError(
                    ErrorCode.INVALID_REQUEST,
                    f"aliases: {alias!r} is already a name of {there or alias}. Choose another "
                    "one.",
                    param="aliases",
                )
        record = CatalogueRecord(self._instance, profile, Origin.OPERATOR)
        key = keys.catalogue(profile.id)
        if not await KvBucket(self._bus, keys.CATALOGUE).put(key, codec.encode(record)):
            raise _not_written()

    async def remove(self, model: str) -> None:
        """Removes a profile from the catalogue; a loaded model stays loaded."""
        self._check_is_not_of_the_file(model)
        if model not in self._catalogue.models:
            have = ", ".join(self._catalogue.models) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"The catalogue has no model {model!r}. Its models: {have}.",
                param="model",
            )
        if not await KvBucket(self._bus, keys.CATALOGUE).delete(keys.catalogue(model)):
            raise _not_written()

    def _check_is_not_of_the_file(self, model: str) -> None:
        if self._catalogue.origin(model) is Origin.FILE:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"{model} is defined in models.toml, which would overwrite this change. Edit the "
                "file, then have it read with 'cortex reload' or SIGHUP.",
                param="model",
            )

    # -- intents that stand --------------------------------------------------------------------

    async def pin(self, name: str, nodes: Sequence[str] = ()) -> tuple[str, list[str]]:
        """Pins a model: it is always loaded on these nodes, and never evicted."""
        model = self._known(name)
        on = set(nodes) or {p.record.node for p in self._fleet.ready(model)}
        if not on:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"node: {model} is not loaded on any node. Name the node to pin it on.",
                param="node",
            )
        for node in on:
            self._check_node(node)
        on |= self._intent.pinned_on(model)
        found = Pin(self._instance, model, tuple(sorted(on)))
        await self._write(keys.pin(model), codec.encode(found))
        return model, sorted(on)

    async def unpin(self, name: str, node: str = "") -> tuple[str, list[str]]:
        """Unpins a model; returns it and the nodes on which it is no longer pinned."""
        model = self._catalogue.resolve(name, self._fleet)
        pinned = self._intent.pinned_on(model)
        gone = ({node} if node else set(pinned)) & pinned
        if not gone:
            listed = self._catalogue.profile(model).pinned_on
            why = f" models.toml pins it on {', '.join(listed)}: edit it there." if listed else ""
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"No operator has pinned {model}{f' on {node}' if node else ''}.{why}",
                param="model",
            )
        left = sorted(pinned - gone)
        if left:
            found = Pin(self._instance, model, tuple(left))
            await self._write(keys.pin(model), codec.encode(found))
        elif not await self._bucket.delete(keys.pin(model)):
            raise _not_written()
        return model, sorted(gone)

    async def drain(self, node: str) -> None:
        """Drains a node: its models go as their streams end, and no model is loaded until it is
        undrained."""
        self._check_node(node)
        await self._write(keys.drain(node), codec.encode(Drain(self._instance, node)))

    async def undrain(self, node: str) -> None:
        """Lets a drained node take models again."""
        if not self._intent.is_drained(node):
            raise FleetError(
                ErrorCode.INVALID_REQUEST, f"node: {node} is not drained.", param="node"
            )
        if not await self._bucket.delete(keys.drain(node)):
            raise _not_written()

    async def _write(self, key: str, value: bytes) -> None:
        if not await self._bucket.put(key, value):
            raise _not_written()

    # -- checks --------------------------------------------------------------------------------

    def _known(self, name: str) -> str:
        model = self._catalogue.resolve(name, self._fleet)
        if model not in self._fleet and model not in self._catalogue:
            have = ", ".join(self._fleet.models()) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"No node offers the model {name!r}, nor is it in the catalogue. Known models: "
                f"{have}. To load a folder or a Hugging Face id, name it as the source.",
                param="model",
            )
        return model

    def _pinned_on(self, model: str) -> set[str]:
        return {*self._catalogue.profile(model).pinned_on, *self._intent.pinned_on(model)}

    def _check_node(self, node: str) -> None:
        names = self._fleet.alive_names()
        if node not in names:
            have = ", ".join(sorted(names)) or "none"
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"node: there is no living node {node!r}. Living nodes: {have}.",
                param="node",
            )

    def _only_node(self) -> str:
        names = sorted(self._fleet.alive_names())
        if len(names) == 1:
            return names[0]
        have = f"Living nodes: {', '.join(names)}." if names else "No node is alive at the moment."
        raise FleetError(ErrorCode.INVALID_REQUEST, f"node: name one. {have}", param="node")

    async def _order(self, node: str, rank_victims: Order) -> None:
        error = await self._orders.send(node, rank_victims)
        if error is not None:
            raise FleetError.of(error)


def _not_written() -> FleetError:
    return FleetError(
        ErrorCode.BUS_UNAVAILABLE,
        "NATS did not store the change. Try again in a few seconds.",
        retry_after_seconds=2,
    )


def _forgiving(node: NodeView) -> NodeView:
    """The node as operators see it: they may have a failed load tried again at once, in the place
    of others."""
    refused = {model: why for model, why in node.refused.items() if model not in node.failed}
    return node._replace(refused=refused, broken=frozenset())


def _why_not(planned: Planned) -> str:
    return f"{planned.model} cannot be loaded. {reasons(planned.answer.misfits)}"
