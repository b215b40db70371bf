"""A process with real neuron services around scripted engines: fleets of any size on two cores.

``python -m tests.support.scripted_neuron --nats URL --name n1 --name n2 --step-ms 5``. Killed and
frozen by tests as a real neuron would be.
"""

import argparse
import asyncio
import os
import signal
from pathlib import Path

from neuron.config import NeuronConfig
from neuron.ipc.messages import Ready
from neuron.service.node import Node
from neuron.service.texts.model_texts import ModelTexts
from neuron.text.prompt import Prompt
from protocol.bus import Bus
from protocol.job import Job
from protocol.runtime import loop
from tests.support.scripted import Script
from tests.support.words import answer


class DeathNote:
    """A file with the moment at which the first process that comes to it dies: ``prompt``, when it
    has a job and has not accepted it, or ``step``, when its engine begins."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, moment: str) -> bool:
        """Always false, if it returns."""
        try:
            if self._path.read_text() != moment:
                return False
            self._path.unlink()
        except FileNotFoundError:
            return False
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    def watch_prompts(self) -> None:
        """Before every prompt of this process."""
        prepare = ModelTexts.prepare

        async def deadly(texts: ModelTexts, job: Job, ready: Ready) -> Prompt:
            self.check("prompt")
            return await prepare(texts, job, ready)

        ModelTexts.prepare = deadly  # type: ignore[method-assign,assignment]


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM, which drains."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    note = DeathNote(options.note)
    note.watch_prompts()
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
            script.kills = lambda _: note.check("step")
            bus = await Bus.connect(options.nats, name=name)
            config = NeuronConfig(
                name=name,
                default_models=() if options.empty else ("cortex-demo",),
                slots=options.slots,
                memory_mb=options.memory_mb,
            )
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
    parser.add_argument("--memory-mb", type=int, default=0)
    parser.add_argument("--empty", type=int, default=0, help="1 = loads nothing at its start")
    parser.add_argument("--note", type=Path, default=Path("none"))
    loop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
