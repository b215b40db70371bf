"""A scheduler without an engine, for tests."""

from neuron.engine.blocks import BlockPool
from neuron.engine.scheduler import Scheduler, SchedulerLimits, StepPlan
from neuron.engine.sequence import Sequence
from neuron.ipc.messages import SamplingParams


def sequence(number: int, prompt: int, answer: int = 8) -> Sequence:
    sample = SamplingParams(max_tokens=answer)
    tokens = [1000 * number + i for i in range(prompt)]  # no two have a common beginning
    return Sequence(number, sample, tokens, prompt, prompt + answer)


def scheduler(
    *, running: int = 8, queued: int = 64, step: int = 256, chunk: int = 64, blocks: int = 1000
) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(blocks)
    return Scheduler(SchedulerLimits(running, queued, step, chunk), pool), pool


def run(scheduler: Scheduler, plan: StepPlan) -> list[int]:
    """Commits *plan* as the engine does; returns the ids of the sequences that finished."""
    scheduler.commit(plan)
    done = []
    for chunk in plan.chunks:
        if chunk.samples:
            chunk.sequence.tokens.append(1)
            if chunk.sequence.total >= chunk.sequence.limit:
                scheduler.remove(chunk.sequence.id)
                done.append(chunk.sequence.id)
    return done


def shape(plan: StepPlan) -> list[tuple[int, int]]:
    return [(chunk.sequence.id, chunk.count) for chunk in plan.chunks]
