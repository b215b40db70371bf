"""Suspects run while nobody else on the engine is without a token."""

import asyncio

from neuron.service.jobs.suspects import Suspects


async def entered(task: asyncio.Task[None]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


def enter(suspects: Suspects, number: int, *, suspect: bool = False) -> asyncio.Task[None]:
    return asyncio.create_task(suspects.enter(number, suspect=suspect))


async def test_without_suspects_nobody_waits() -> None:
    suspects = Suspects()
    for number in range(5):
        assert await entered(enter(suspects, number))


async def test_a_suspect_waits_for_the_young_and_holds_up_the_others() -> None:
    suspects = Suspects()
    await suspects.enter(1, suspect=False)
    suspect = enter(suspects, 2, suspect=True)
    assert not await entered(suspect)
    other = enter(suspects, 3)
    assert not await entered(other), "it would keep the suspect waiting for ever"
    suspects.leave(1)
    assert await entered(suspect)
    assert not await entered(other)
    suspects.leave(2)
    suspects.leave(2)
    assert await entered(other)


async def test_suspects_go_one_by_one() -> None:
    suspects = Suspects()
    first, second = enter(suspects, 1, suspect=True), enter(suspects, 2, suspect=True)
    assert await entered(first)
    assert not await entered(second)
    suspects.leave(1)
    assert await entered(second)


async def test_a_suspect_that_gives_up_lets_the_others_in() -> None:
    suspects = Suspects()
    await suspects.enter(1, suspect=False)
    suspect, other = enter(suspects, 2, suspect=True), enter(suspects, 3)
    assert not await entered(other)
    suspect.cancel()
    assert await entered(other)
