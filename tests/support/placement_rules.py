"""What must never happen in a simulated fleet (``AssertionError`` where it does), and what it must
always have."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cortex.placement.planner import Want
from tests.support.placement_parts import STANDING_BOUND_SECONDS, Phase, Replica

if TYPE_CHECKING:
    from tests.support.placement_world import World


def may_go_to(world: "World", node: str, model: str) -> None:
    """A model is fetched or loaded only where it may be."""
    allowed = world.models[model].need.nodes
    assert not allowed or node in allowed, f"{model} may not run on {node}"
    assert node in world.alive, f"{node} is dead"
    assert node not in world.drained, f"{node} is drained"
    assert world.cooling.get((node, model), 0.0) <= world.now, f"{node} refuses {model} now"


def may_leave(world: "World", replica: Replica) -> None:
    """What is pinned or needed stays."""
    model, spec = replica.model, replica.spec
    assert replica.node not in spec.pinned_on, f"{model} is pinned"
    assert len(world.ready(model)) > spec.min_replicas, f"{model} falls below its minimum"


def hold(world: "World") -> None:
    """Memory, pins, streams, and one load of a model at a time; checked at every step."""
    for node, devices in world.nodes.items():
        for device in range(len(devices)):
            assert world.free(node, device) >= 0, f"{node} is overcommitted at {world.now}"
    for name, spec in world.models.items():
        here = {r.node for r in world.replicas if r.model == name}
        left = spec.pinned_on - world.disturbed - here
        assert not left, f"{name} left {left}"
    assert sum(len(r.streams) for r in world.replicas) == world.running, "a stream was cut"
    loading = Counter(r.model for r in world.replicas if r.phase is Phase.LOADING)
    assert loading.total() == len(loading), f"loaded twice at a time: {loading}"


def standing_wants(world: "World") -> Iterator[Want]:
    """Pins, and minimum replicas, as far as they are not met."""
    missing = {}
    for model, spec in world.models.items():
        if world.is_coming(model):
            continue
        have = {r.node for r in world.ready(model)}
        for node in sorted((spec.pinned_on & world.alive) - world.drained - have):
            need = spec.need._replace(nodes=frozenset({node}))
            missing[model, node] = Want(need, 0.0, STANDING_BOUND_SECONDS, spec.load_seconds)
            break
        else:
            if len(have) < spec.min_replicas:
                want = Want(spec.need, 0.0, STANDING_BOUND_SECONDS, spec.load_seconds)
                missing[model, ""] = want
    world.missing_since = {key: world.missing_since.get(key, world.now) for key in missing}
    for key, want in missing.items():
        yield want._replace(waited_seconds=world.now - world.missing_since[key], why="standing")
