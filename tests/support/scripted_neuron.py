"""A process with real neuron services around scripted engines: fleets of any size on two cores.

``python -m tests.support.scripted_neuron --nats URL --name n1 --name n2 --step-ms 5``. Killed and
frozen by tests as a real neuron would be.
"""

import argparse
import asyncio
import signal

from neuron.config import NeuronConfig
from neuron.service.node import Node
from protocol import loop
from protocol.bus import Bus
from tests.support.scripted import Script
from tests.support.words import answer


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM, which drains."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as tasks:
        nodes = []
        for name in options.name:
            script = Script(
                answer,
                slots=options.slots,
                step_seconds=options.step_ms / 1000,
                row_seconds=options.row_ms / 1000,
                prefill_steps=options.prefill_steps,
                load_seconds=options.load_seconds,
                context=options.context,
            )
            bus = await Bus.connect(options.nats, name=name)
            config = NeuronConfig(name=name, models=("cortex-demo",), slots=options.slots)
            node = Node(bus, config, script.start)
            nodes.append((node, bus, tasks.create_task(node.run(), name=name)))
        await stop.wait()
        for node, _, task in nodes:
            await node.drain()
            task.cancel()
    for node, bus, _ in nodes:
        await node.leave()
        await bus.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", required=True)
    parser.add_argument("--name", action="append", required=True)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--row-ms", type=float, default=0.0)
    parser.add_argument("--prefill-steps", type=int, default=2)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--context", type=int, default=8192)
    loop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
