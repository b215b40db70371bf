"""How often models are swapped on traces that make them take turns; simulated time.

``python -m bench.placement``. Loads of the planner, of serving in request order, and the optimum of
one who knows all requests of the next half minute.
"""

import statistics

from tests.support.traces import batched, in_request_order, optimum, rotation, zipf


def main() -> None:
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


if __name__ == "__main__":
    main()
