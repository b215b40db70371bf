"""Two request sequences that make models take turns, and what others would load for them."""

import itertools
import random
from collections.abc import Sequence

from cortex.placement.fit import Need
from tests.support.placement_parts import ModelSpec, Request
from tests.support.placement_world import World

BOUND_SECONDS = 30.0
GIB = 1 << 30


def rotation() -> tuple[World, list[Request], int]:
    """ABAACABC fifty times, one a second, on a device with room for one; a load takes 5 s."""
    models = {name: ModelSpec(Need(name, 10 * GIB), load_seconds=5.0) for name in "ABC"}
    requests = [Request(float(i), name) for i, name in enumerate("ABAACABC" * 50)]
    return World({"n": (12 * GIB,)}, models, bound_seconds=BOUND_SECONDS), requests, 1


def zipf(seed: int = 1) -> tuple[World, list[Request], int]:
    """Six hundred requests, one a second on average, for twelve models by Zipf's law with exponent
    1.1, on a device with room for three; a load takes 2 s."""
    chance = random.Random(seed)
    names = [f"m{rank:02}" for rank in range(12)]
    weights = [1 / (rank + 1) ** 1.1 for rank in range(12)]
    models = {name: ModelSpec(Need(name, 10 * GIB), load_seconds=2.0) for name in names}
    at, requests = 0.0, []
    for _ in range(600):
        at += chance.expovariate(1.0)
        requests.append(Request(at, chance.choices(names, weights)[0]))
    return World({"n": (32 * GIB,)}, models, bound_seconds=BOUND_SECONDS), requests, 3


def node_for(room: int, load_seconds: float, bound_seconds: float = 120.0) -> World:
    """One node with room for so many of six models."""
    models = {n: ModelSpec(Need(n, 10 * GIB), load_seconds=load_seconds) for n in "ABCDEF"}
    return World({"n": ((10 * room + 2) * GIB,)}, models, bound_seconds=bound_seconds)


def in_request_order(requests: Sequence[Request], room: int) -> int:
    """Loads when every request gets its model at its turn, and the least recently used one goes."""
    held: list[str] = []
    loads = 0
    for request in requests:
        if request.model in held:
            held.remove(request.model)
        else:
            loads += 1
            del held[: max(0, len(held) - room + 1)]
        held.append(request.model)
    return loads


def optimum(sequence: Sequence[str], room: int) -> int:
    """The fewest loads for a sequence: of those held the one goes that is needed last (Belady, IBM
    Systems Journal 5(2), 1966)."""
    held: set[str] = set()
    loads = 0
    for position, model in enumerate(sequence):
        if model in held:
            continue
        loads += 1
        if len(held) >= room:
            later = sequence[position + 1 :]
            held.remove(max(held, key=lambda m: later.index(m) if m in later else len(sequence)))
        held.add(model)
    return loads


def batched(requests: Sequence[Request], room: int) -> list[str]:
    """The models in the order in which one who knows all requests of a window of the bound's
    length would serve them: once each, those of the last window's end first."""
    sequence: list[str] = []
    for _, window in itertools.groupby(requests, key=lambda r: int(r.at // BOUND_SECONDS)):
        names = list(dict.fromkeys(request.model for request in window))
        names.sort(key=lambda name: name not in sequence[-room:])
        sequence += names
    return sequence
