"""Suspects run while nobody else on the engine is without a token."""

import asyncio

from neuron.service.jobs.suspects import Suspects


async def entered(task: asyncio.Task[None]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


def enter(nursery: Suspects, number: int, *, suspect: bool = False) -> asyncio.Task[None]:
    return asyncio.create_task(nursery.enter(number, suspect=suspect))


async def test_without_suspects_nobody_waits() -> None:
    nursery = Suspects()
    for number in range(5):
        assert await entered(enter(nursery, number))


async def test_a_suspect_waits_for_the_young_and_holds_up_the_others() -> None:
    nursery = Suspects()
    await nursery.enter(1, suspect=False)
    suspect = enter(nursery, 2, suspect=True)
    assert not await entered(suspect)
    other = enter(nursery, 3)
    assert not await entered(other), "it would keep the suspect waiting for ever"
    nursery.leave(1)
    assert await entered(suspect)
    assert not await entered(other)
    nursery.leave(2)
    nursery.leave(2)
    assert await entered(other)


async def test_suspects_go_one_by_one() -> None:
    nursery = Suspects()
    first, second = enter(nursery, 1, suspect=True), enter(nursery, 2, suspect=True)
    assert await entered(first)
    assert not await entered(second)
    nursery.leave(1)
    assert await entered(second)


async def test_a_suspect_that_gives_up_lets_the_others_in() -> None:
    nursery = Suspects()
    await nursery.enter(1, suspect=False)
    suspect, other = enter(nursery, 2, suspect=True), enter(nursery, 3)
    assert not await entered(other)
    suspect.cancel()
    assert await entered(other)
