"""How often models are swapped when they take turns, and who waits for it; simulated time.

``python -m bench.placement``. On traces: loads of the planner, of serving in request order, and the
optimum of one who knows all requests of the next half minute. Then clients that wait for each
answer before they go on.
"""

import itertools
import statistics

from tests.support.placement_clients import Client
from tests.support.traces import (
    batched,
    in_request_order,
    node_for,
    optimum,
    rotation,
    zipf,
)


def main() -> None:
    traces()
    print()
    closed_loops()


def traces() -> None:
    """Requests that come whatever happens."""
    print("| trace | requests | request order | ours | of it | optimum | ours over it | wait |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (world, requests, room) in (
        ("ABAACABC × 50", rotation()),
        *((f"Zipf, seed {seed}", zipf(seed)) for seed in (1, 2, 3)),
    ):
        world.run(requests)
        fifo, ours = in_request_order(requests, room), world.loads.total()
        best = optimum(batched(requests, room), room)
        waits = [ended.waited for ended in world.ended]
        late = sum(not ended.is_served for ended in world.ended)
        print(
            f"| {name} | {len(requests)} | {fifo} | {ours} | {ours / fifo:.0%} | {best} | "
            f"{ours / best:.2f} | mean {statistics.mean(waits):.1f} s, worst {max(waits):.1f} s, "
            f"{late} too late |"
        )


def closed_loops() -> None:
    """Clients that wait for each answer; one node, loads of 3 s, answers of half a second."""
    print("| clients | room | requests | loads | requests a minute | wait: median | worst |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, room, clients in (
        ("one: A B", 1, [asks("AB", 100)]),
        ("one: A B C", 1, [asks("ABC", 100)]),
        ("one: A B C", 2, [asks("ABC", 100)]),
        ("two, each busy with its own", 1, [asks("A", 600), asks("B", 600)]),
        ("two, with pauses of 5 and 7 s", 1, [asks("A", 60, 5.0), asks("B", 60, 7.0)]),
        ("an agent: A B; another: C every 10 s", 1, [asks("AB", 100), asks("C", 100, 10.0)]),
        ("ten over six, pauses of 1 s", 3, [asks("ABCDEF"[i % 6], 100, 1.0) for i in range(10)]),
    ):
        world = node_for(room, load_seconds=3.0)
        world.run([], clients)
        waits = [ended.waited for ended in world.ended]
        print(
            f"| {name} | {room} | {len(waits)} | {world.loads.total()} | "
            f"{60 * len(waits) / world.now:.0f} | {statistics.median(waits):.1f} s | "
            f"{max(waits):.1f} s |"
        )


def asks(models: str, count: int, pause_seconds: float = 0.0) -> Client:
    """A client that asks these models in turn."""
    asked = itertools.islice(itertools.cycle(models), count)
    return Client(f"{models} {next(_numbers)}", asked, pause_seconds=pause_seconds)


_numbers = itertools.count()


if __name__ == "__main__":
    main()
