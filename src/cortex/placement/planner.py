"""Plans which model is loaded where, what is evicted for it, and when.

Pure: a snapshot in, orders out. Loading is expensive; waiting is cheap until it nears its bound. So
a wanted model displaces

- what nobody has used lately but those who now wait for it: at once, as they would otherwise wait
  for nobody; a client that asks one model after another never waits for more than the load;
- what is idle, once its requests have waited 1.5 times as long as the node has spent on loading in
  the last minute: at once where nothing was loaded lately, and later the more the models take
  turns, so that requests gather and one load serves them all; or once the idle model has been idle
  for long compared with the time of the load;
- whatever may be evicted, as soon as a later start would make a request wait beyond the bound.

Wants of one node are served by deadline, each with the time for its own load and some service, so
that even the last of them is in time. A running stream is never cut: its model drains.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cortex.placement.eviction import Strategy, rank_victims
from cortex.placement.fit import (
    DeviceView,
    Fit,
    FitResult,
    Need,
    NodeView,
    ResidentView,
    could_be_had,
    may_displace,
    place,
)

GATHER = 1.5
"""Requests for a model wait this many times the seconds that a node spent on loading in the last
minute, before the model displaces an idle one."""
COLD = 3.0
"""A model that has been idle for this many times the seconds of the load goes at once."""
HEARD_SECONDS = 1.0
"""How much later than a gateway the placer may learn that a model is idle."""
LOADS_AT_ONCE = 4
"""Loads under way on one node; more would only take the disk and the processor from each other."""
SERVICE_SECONDS = 2.0
"""How long a loaded model serves before the next one takes its place."""
CROWDED_SECONDS = 5.0
"""How long requests must wait beside busy replicas to justify another replica."""


class Want(NamedTuple):
    """A model that requests wait for, or that must always be loaded."""

    need: Need
    waited_seconds: float
    """How long the oldest request has waited."""
    bound_seconds: float
    """How long a request may wait for its model."""
    load_seconds: float
    """What loading it takes, as far as is known."""
    replicas: int = 0
    """How many replicas are ready, all of them busy."""
    max_replicas: int = 1
    why: str = ""
    """The reason, when it is not a waiting request."""
    released: Mapping[str, float] = {}
    """Models that nobody but the waiting clients has used lately, with the seconds since."""

    @property
    def deadline(self) -> float:
        """Seconds from now until the oldest request has waited too long."""
        return self.bound_seconds - self.waited_seconds


class LoadAction(NamedTuple):
    """An order to load a model: the victims are drained in this order, until the model fits."""

    model: str
    node: str
    devices: tuple[int, ...]
    victims: tuple[str, ...]
    why: str
    is_free: bool = False
    """Whether nobody misses the victims."""


class PullAction(NamedTuple):
    """An order to fetch a model's files, so that it can be loaded."""

    model: str
    node: str
    why: str


class UnloadAction(NamedTuple):
    """An order to unload a model: it exceeds its idle limit, or its node is being drained."""

    model: str
    node: str
    why: str


class RecycleAction(NamedTuple):
    """An order to restart a model's engine."""

    model: str
    node: str
    loads: int
    """Loads of the node since the engine was started, or should have been."""
    why: str


class PlacementPlan(NamedTuple):
    """What to do now."""

    loads: tuple[LoadAction, ...]
    unloads: tuple[UnloadAction, ...]
    pulls: tuple[PullAction, ...] = ()
    recycles: tuple[RecycleAction, ...] = ()


def plan(
    wants: Iterable[Want],
    nodes: Sequence[NodeView],
    taken: Iterable[str],
    strategy: Strategy,
    defrag_after: int = 0,
) -> PlacementPlan:
    """Decides the orders of this moment.

    *nodes* already count what an order under way will take or free, except on the nodes that are
    *taken*: those get no other load until that is known. Beside a load under way, another one may
    begin where nothing has to go for it. *defrag_after* is the number of loads on a node
    after which its older engines are restarted when they are idle; 0 means never.
    """
    books = {node.name: node for node in nodes}
    free = set(books) - set(taken)
    waiting = sorted((w for w in wants if _is_worth(w)), key=lambda w: (w.deadline, w.need.model))
    urgent = _urgent(waiting, nodes)
    loads, pulls = [], []
    for want in waiting:
        model = want.need.model
        here = [books[name] for name in books if name in free]
        here = [node for node in here if node.loading < LOADS_AT_ONCE]
        answer = _ask(want, here, strategy, is_urgent=model in urgent)
        if not answer.fits:
            if model in urgent:
                free -= _blocked_by_loads(want, here, strategy)
            continue
        fit = answer.fits[0]
        if fit.has_files:
            books[fit.node] = after(books[fit.node], want.need, fit)
            if fit.victims:
                free.discard(fit.node)
            victims = tuple(victim.model for victim in fit.victims)
            _count_out(books, victims)
            is_free = bool(victims) and all(_is_released(victim, want) for victim in fit.victims)
            loads.append(LoadAction(model, fit.node, fit.devices, victims, _why(want), is_free))
        elif not any(model in node.files for node in nodes):
            pulls.append(PullAction(model, fit.node, _why(want)))
    unloads = _unloads(books)
    recycles = [
        recycle
        for name in sorted(free)
        if defrag_after and (recycle := _recycle(books[name], defrag_after))
    ]
    return PlacementPlan(tuple(loads), tuple(unloads), tuple(pulls), tuple(recycles))


def _blocked_by_loads(want: Want, nodes: Sequence[NodeView], strategy: Strategy) -> set[str]:
    """The nodes where an urgent want gets its victims as soon as the loads there are over: others
    must not prolong them."""
    loading = [node._replace(loading=0) for node in nodes if node.loading]
    return {fit.node for fit in _ask(want, loading, strategy, is_urgent=True).fits}


def _recycle(node: NodeView, defrag_after: int) -> RecycleAction | None:
    """Restarts one engine at a time on a node, the oldest first."""
    old = [r for r in node.residents if r.loads_since >= defrag_after]
    idle = [r for r in old if r.is_ready and not r.is_busy]
    if not idle or not all(r.is_ready for r in node.residents):
        return None
    oldest = max(idle, key=lambda r: (r.loads_since, r.model))
    why = f"{oldest.loads_since} loads on the node since its engine was started"
    due = defrag_after * (oldest.loads_since // defrag_after)
    return RecycleAction(oldest.model, node.name, due, why)


def _unloads(books: dict[str, NodeView]) -> list[UnloadAction]:
    """Unloads replicas that exceed their idle limit: the longest idle first, then looks at the
    others again without it."""
    unloads = []
    found = [(r.idle_seconds, node, r.model) for node in books for r in books[node].residents]
    for _, node, model in sorted(found, reverse=True):
        resident = next(r for r in books[node].residents if r.model == model)
        if why := _why_unload(books[node], resident):
            unloads.append(UnloadAction(model, node, why))
            leaving = resident._replace(is_ready=False)
            residents = tuple(leaving if r is resident else r for r in books[node].residents)
            books[node] = books[node]._replace(residents=residents)
            _count_out(books, [model])
    return unloads


def _count_out(books: dict[str, NodeView], models: Collection[str]) -> None:
    """Subtracts one replica of each of *models* from the books of those that stay."""
    for name, node in books.items():
        residents = tuple(
            r._replace(replicas=r.replicas - 1) if r.model in models else r for r in node.residents
        )
        books[name] = node._replace(residents=residents)


def _why_unload(node: NodeView, resident: ResidentView) -> str:
    """Returns the reason to unload a resident; empty for one that stays."""
    if not resident.is_ready:
        return ""
    if node.is_draining:
        return "the node is draining"
    if resident.is_expired and not (resident.is_pinned or resident.is_last):
        return f"idle for {resident.idle_seconds:.0f} s"
    return ""


def _is_worth(want: Want) -> bool:
    """Whether another load is justified: the first replica always is, a further one when its
    requests keep waiting."""
    if want.replicas == 0:
        return True
    return want.replicas < want.max_replicas and want.waited_seconds >= CROWDED_SECONDS


def _ask(
    want: Want, nodes: Sequence[NodeView], strategy: Strategy, *, is_urgent: bool
) -> FitResult:
    def may_evict(node: NodeView, resident: ResidentView) -> bool:
        if node.loading or not may_displace(want.need, resident):
            return False
        if is_urgent and not want.replicas:
            return not resident.is_busy or resident.ready_seconds >= SERVICE_SECONDS
        if resident.is_busy:
            return False
        has_gathered = want.waited_seconds >= GATHER * node.recent_load_seconds
        return has_gathered or all(map(is_cold, until(resident, node)))

    def until(resident: ResidentView, node: NodeView) -> Iterator[ResidentView]:
        """Seconds until *resident* and those that go before it may be displaced: in order of class,
        those before it may have been used more recently."""
        for other in rank_victims(
            (r for r in node.residents if may_displace(want.need, r)), strategy
        ):
            yield other
            if other is resident:
                return

    def is_cold(resident: ResidentView) -> bool:
        is_long_idle = resident.idle_seconds >= COLD * want.load_seconds
        return resident.is_expired or is_long_idle or _is_released(resident, want)

    return place(want.need, nodes, lambda rs: rank_victims(rs, strategy), may_evict)


def _is_released(resident: ResidentView, want: Want) -> bool:
    """Whether only clients that now wait for *want* have used *resident* lately: whoever used it at
    another gateway ended after them."""
    ago = want.released.get(resident.model)
    return ago is not None and resident.idle_seconds >= ago - HEARD_SECONDS


def _urgent(wants: Sequence[Want], nodes: Sequence[NodeView]) -> set[str]:
    """Selects models whose load must start now, because otherwise a request on their node would
    wait beyond the bound."""
    queues: dict[str, list[Want]] = {}
    for want in wants:
        answer = could_be_had(want.need, nodes)
        if answer.fits and not want.replicas:
            queues.setdefault(answer.fits[0].node, []).append(want)
    urgent = set()
    for queue in queues.values():  # sorted by deadline, as the wants are
        ends = itertools.accumulate(want.load_seconds + SERVICE_SECONDS for want in queue)
        slack = (want.deadline - end for want, end in zip(queue, ends, strict=True))
        if min(slack) <= 0:
            urgent.add(queue[0].need.model)
    return urgent


def after(node: NodeView, need: Need, fit: Fit) -> NodeView:
    """Returns the node's books with an order entered: the victims' memory is spoken for."""
    gone = {victim.model for victim in fit.victims}
    freed = [
        sum(r.bytes_each for r in fit.victims if device in r.devices)
        for device in range(len(node.devices))
    ]
    devices = tuple(
        DeviceView(
            device.total_bytes,
            device.free_bytes + freed[i] - (need.bytes_each if i in fit.devices else 0),
        )
        for i, device in enumerate(node.devices)
    )
    kept = tuple(r for r in node.residents if r.model not in gone)
    newcomer = ResidentView(
        need.model, fit.devices, need.bytes_each, need.residency, is_ready=False
    )
    return node._replace(devices=devices, residents=(*kept, newcomer), loading=node.loading + 1)


def _why(want: Want) -> str:
    if want.why:
        return want.why
    if not want.replicas:
        return f"wanted for {want.waited_seconds:.0f} s"
    return (
        f"{want.replicas} replicas are full, and requests have waited {want.waited_seconds:.0f} s"
    )
