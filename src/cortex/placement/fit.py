"""Finds where a model fits, and what must be evicted for it. Pure: a snapshot in, an answer out.

A node is *feasible* when the model may run there and enough of its devices are large enough. The
model *fits* when their free memory, plus what may be evicted, suffices. Among the nodes where it
fits, the best has the files (a download takes minutes, an eviction seconds), then evicts the fewest
models, then is loading the fewest, then has the weights in host memory, then is left with the least
free memory (large devices stay free for large models), then is the least busy.

Every device of a model holds the same share of it (``Need.bytes_each``).
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from protocol.runtime.sizes import size_text

EXTRA_IDLE_SECONDS = 300.0
"""A replica beyond the minimum that the placer has loaded goes after being idle for this long."""


class Need(NamedTuple):
    """What a model needs, and where it may run."""

    model: str
    bytes_each: int = 0
    """Memory on each of its devices: weights, KV cache and overhead; used where the node has no
    estimate of its own."""
    devices: int = 1
    """Devices that share the model: the tensor-parallel size."""
    min_device_bytes: int = 0
    """Smaller devices are not used, even if they are free."""
    residency: int = 100
    """Its residency class: it displaces residents of its own class and of lower ones."""
    nodes: frozenset[str] = frozenset()
    """The only nodes that may run it; empty means any."""


class ResidentView(NamedTuple):
    """A model that holds memory on a node."""

    model: str
    devices: tuple[int, ...]
    bytes_each: int
    residency: int = 100
    is_pinned: bool = False
    is_ready: bool = True
    """Whether it is neither loading nor unloading."""
    running: int = 0
    """Streams on this replica."""
    waiting: int = 0
    """Requests for this model at all gateways."""
    idle_seconds: float = 0.0
    """Seconds since its last stream ended."""
    idle_allowed_seconds: float = 0.0
    """Idle time after which it is unloaded even if its memory is not needed; 0 means never."""
    ready_seconds: float = 0.0
    """Seconds since it was loaded."""
    loads_since: int = 0
    """Models that the node has loaded since this one's engine was started."""
    replicas: int = 1
    """Ready replicas of its model in the whole fleet."""
    min_replicas: int = 0
    """Replicas of its model that must stay loaded."""
    asked_for: bool = False
    """Whether an operator wants it on its node."""

    @property
    def is_busy(self) -> bool:
        """Whether requests use it, or are about to."""
        return self.running + self.waiting > 0

    @property
    def is_last(self) -> bool:
        """Whether the fleet would be below the model's minimum without this replica."""
        return 0 < self.min_replicas >= self.replicas

    @property
    def idle_limit_seconds(self) -> float:
        """The idle time after which it may be unloaded; 0 means never."""
        limits = [self.idle_allowed_seconds] if self.idle_allowed_seconds else []
        if self.replicas > max(1, self.min_replicas) and not self.asked_for:
            limits.append(EXTRA_IDLE_SECONDS)
        return min(limits, default=0.0)

    @property
    def is_expired(self) -> bool:
        """Whether it has exceeded its idle limit."""
        return 0 < self.idle_limit_seconds <= self.idle_seconds and not self.is_busy


class DeviceView(NamedTuple):
    """A device, with what is free of it by the node's books."""

    total_bytes: int
    free_bytes: int


class NodeView(NamedTuple):
    """A living node, as placement sees it."""

    name: str
    devices: tuple[DeviceView, ...]
    residents: tuple[ResidentView, ...] = ()
    files: frozenset[str] = frozenset()
    """Models whose files are on the node."""
    warm: frozenset[str] = frozenset()
    """Models whose weights are kept in the node's host memory."""
    sizes: Mapping[str, int] = {}
    """What models would take on each device there."""
    ranks_share: bool = False
    """Whether all ranks of a model share one device, as on a CPU."""
    refused: Mapping[str, str] = {}
    """Models that cannot be loaded there now, with the reasons."""
    failed: frozenset[str] = frozenset()
    """Those among them whose load has failed there, and will be tried again after a pause."""
    broken: frozenset[str] = frozenset()
    """Models whose last load there showed that they do not work; nothing goes for them."""
    busyness: float = 0.0
    """Streams per slot, over all its models."""
    is_draining: bool = False
    recent_load_seconds: float = 0.0
    """Seconds that it spent on loading in the last minute."""
    loading: int = 0
    """Models that are being loaded there; the books count what they take."""


class Fit(NamedTuple):
    """A way to load a model."""

    node: str
    devices: tuple[int, ...]
    victims: tuple[ResidentView, ...]
    """Models to evict, first to go first."""
    left_bytes: int
    """Bytes that remain free on these devices together."""
    has_files: bool
    busyness: float
    is_warm: bool = False
    loading: int = 0
    """Models that are being loaded on the node already."""

    @property
    def rank(self) -> tuple[bool, int, int, bool, int, float, str]:
        """Sort key of a fit; the smallest is the best."""
        first = not self.has_files, len(self.victims), self.loading, not self.is_warm
        return (*first, self.left_bytes, self.busyness, self.node)


class Misfit(NamedTuple):
    """Why a node cannot take a model."""

    node: str
    why: str
    is_for_ever: bool = False
    """Whether no eviction could help: the hardware or the profile would have to change."""


def reasons(misfits: Sequence[Misfit], at_most: int | None = None) -> str:
    """Joins the reasons node by node into a sentence: *at_most* that many, then the number of
    others."""
    if not misfits:
        return "The fleet has no living node."
    shown = [f"{misfit.node}: {misfit.why.removesuffix('.')}" for misfit in misfits[:at_most]]
    more = [f"and {len(misfits) - len(shown)} more"] if len(misfits) > len(shown) else []
    return "; ".join(shown + more) + "."


class FitResult(NamedTuple):
    """The result of :func:`place`."""

    fits: tuple[Fit, ...]
    """Ways to load the model, the best first."""
    misfits: tuple[Misfit, ...]


MayEvict = Callable[[NodeView, ResidentView], bool]
Order = Callable[[Iterable[ResidentView]], list[ResidentView]]
"""Sorts residents, first to go first."""


def place(need: Need, nodes: Sequence[NodeView], order: Order, may_evict: MayEvict) -> FitResult:
    """Asks every node whether *need* fits; *may_evict* says who may be evicted for it
    (:func:`may_displace`, and whatever else the moment requires)."""
    answers = [_on(need, node, order, may_evict) for node in nodes]
    fits = sorted((a for a in answers if isinstance(a, Fit)), key=lambda fit: fit.rank)
    return FitResult(tuple(fits), tuple(a for a in answers if isinstance(a, Misfit)))


def may_displace(need: Need, resident: ResidentView) -> bool:
    """Whether *resident* may ever be evicted for *need*, however long the wait."""
    return (
        resident.is_ready
        and not resident.is_pinned
        and not resident.is_last
        and resident.residency <= need.residency
        and resident.model != need.model
    )


def could_be_had(need: Need, nodes: Sequence[NodeView]) -> FitResult:
    """Finds where *need* would fit if nothing were in use, loading or draining: where even that is
    impossible, waiting does not help."""
    settled = [_settled(node, need.model) for node in nodes]
    return place(need, settled, list, lambda _, resident: may_displace(need, resident))


def _settled(node: NodeView, model: str) -> NodeView:
    """The node with every resident ready, and without *model* itself, which can only be
    unloading."""
    gone = [resident for resident in node.residents if resident.model == model]
    devices = tuple(
        device._replace(
            free_bytes=device.free_bytes + sum(r.bytes_each for r in gone if i in r.devices)
        )
        for i, device in enumerate(node.devices)
    )
    kept = (r._replace(is_ready=True) for r in node.residents if r.model != model)
    return node._replace(devices=devices, residents=tuple(kept))


def _on(need: Need, node: NodeView, order: Order, may_evict: MayEvict) -> Fit | Misfit:
    if need.nodes and node.name not in need.nodes:
        places = ", ".join(sorted(need.nodes))
        return Misfit(node.name, f"the model is restricted to {places}")
    if node.is_draining:
        return Misfit(node.name, "the node is draining")
    for resident in node.residents:
        if resident.model == need.model:
            why = (
                "it has the model already"
                if resident.is_ready
                else "the model is being loaded or unloaded there"
            )
            return Misfit(node.name, why)
    if need.model in node.refused:
        return Misfit(node.name, node.refused[need.model])
    need = need._replace(
        bytes_each=node.sizes.get(need.model, need.bytes_each),
        devices=1 if node.ranks_share else need.devices,
    )
    floor = max(need.bytes_each, need.min_device_bytes, 1)  # some devices are not meant for models
    large = [i for i, device in enumerate(node.devices) if device.total_bytes >= floor]
    if len(large) < need.devices:
        return Misfit(node.name, _too_small(need, node, floor, len(large)), is_for_ever=True)
    is_broken = need.model in node.broken
    movable = [] if is_broken else order(r for r in node.residents if may_evict(node, r))
    ways = (
        _with_devices(need, node, devices, movable)
        for devices in itertools.combinations(large, need.devices)
    )
    fits = [way for way in ways if way is not None]
    if not fits:
        why = _too_full(need, node, large, movable)
        if is_broken:
            why += (
                "; its last load here failed, so no other model goes for it until its files change "
                "or an operator loads it"
            )
        return Misfit(node.name, why)
    return min(fits, key=lambda fit: (len(fit.victims), fit.left_bytes, fit.devices))


def _with_devices(
    need: Need, node: NodeView, devices: tuple[int, ...], movable: Sequence[ResidentView]
) -> Fit | None:
    missing = {i: need.bytes_each - node.devices[i].free_bytes for i in devices}
    victims: list[ResidentView] = []
    for resident in movable:
        if max(missing.values()) <= 0:
            break
        if any(missing.get(i, 0) > 0 for i in resident.devices):
            victims.append(resident)
            _credit(missing, resident, resident.bytes_each)
    if max(missing.values()) > 0:
        return None
    for victim in list(victims):  # a later victim may have made an earlier one unnecessary
        if all(missing.get(i, 0) + victim.bytes_each <= 0 for i in victim.devices if i in missing):
            victims.remove(victim)
            _credit(missing, victim, -victim.bytes_each)
    left = -sum(missing.values())
    has_files = need.model in node.files
    is_warm = need.model in node.warm
    gone = tuple(victims)
    return Fit(node.name, devices, gone, left, has_files, node.busyness, is_warm, node.loading)


def _credit(missing: dict[int, int], resident: ResidentView, size: int) -> None:
    for device in resident.devices:
        if device in missing:
            missing[device] -= size


def _too_small(need: Need, node: NodeView, floor: int, large: int) -> str:
    sizes = [size_text(device.total_bytes) for device in node.devices if device.total_bytes]
    wanted = f"{need.devices} device{'s' * (need.devices > 1)}"
    if is_known := floor > 1:
        wanted += f" of {size_text(floor)}"
    are = "that large" if is_known else "for models"
    have = ", ".join(sizes) or "none"
    return f"it needs {wanted}, and {large} here are {are} (memory for models: {have})"


def _too_full(
    need: Need, node: NodeView, devices: Sequence[int], movable: Sequence[ResidentView]
) -> str:
    """Explains what is in the way, on the device that comes closest."""

    def reach(device: int) -> int:
        freed = sum(r.bytes_each for r in movable if device in r.devices)
        return node.devices[device].free_bytes + freed

    best = sorted(devices, key=reach)[-need.devices]
    names = {resident.model for resident in movable}
    held = ", ".join(
        f"{r.model} {size_text(r.bytes_each)}"
        for r in node.residents
        if best in r.devices and r.model not in names
    )
    rest = f"; {held} cannot be evicted now" if held else ""
    needed, available = size_text(need.bytes_each), size_text(reach(best))
    return f"it needs {needed} and {available} can be made free{rest}"
