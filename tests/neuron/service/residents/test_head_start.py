"""A process is begun ahead, taken once, and ended when nobody takes it."""

import asyncio

import pytest

from neuron.service.residents.head_start import HeadStart

pytestmark = pytest.mark.asyncio


class Prepared:
    """A process that counts how often it was dropped."""

    def __init__(self) -> None:
        self.dropped = 0

    async def start(self, *_: object, **__: object) -> None:
        """Not called here."""

    async def drop(self) -> None:
        self.dropped += 1


async def test_what_nobody_takes_is_ended() -> None:
    made = Prepared()

    async def prepare(folder: str) -> Prepared:
        assert folder == "here"
        await asyncio.sleep(0)
        return made

    async with HeadStart(prepare, "here"):  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
    assert made.dropped == 1

    async def fail() -> None:
        async with HeadStart(prepare, "here"):  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert made.dropped == 2
    async with HeadStart(prepare, "here") as head_start:  # type: ignore[arg-type]
        taken: object = await head_start.take()
        assert taken is made
        assert await head_start.take() is None
    assert made.dropped == 2


async def test_without_one_nothing_is_taken() -> None:
    async with HeadStart(None, "here") as head_start:
        assert await head_start.take() is None


async def test_a_process_that_cannot_be_made_is_done_without() -> None:
    async def prepare(folder: str) -> Prepared:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async with HeadStart(prepare, "here") as head_start:  # type: ignore[arg-type]
        assert await head_start.take() is None


async def test_it_ends_with_the_load_that_is_cancelled() -> None:
    made, entered = Prepared(), asyncio.Event()

    async def prepare(folder: str) -> Prepared:
        return made

    async def load() -> None:
        async with HeadStart(prepare, "here"):  # type: ignore[arg-type]
            entered.set()
            await asyncio.Event().wait()

    loading = asyncio.create_task(load())
    await entered.wait()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    assert made.dropped == 1


async def test_what_is_still_being_prepared_is_not_waited_for() -> None:
    cancelled = asyncio.Event()

    async def prepare(folder: str) -> Prepared:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with HeadStart(prepare, "here"):  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
    assert cancelled.is_set()


@pytest.mark.parametrize("turns", range(6))
async def test_a_load_that_is_cancelled_while_it_takes_the_process_loses_nothing(
    turns: int,
) -> None:
    going, prepared, taken = asyncio.Event(), Prepared(), False
    is_made = False

    async def prepare(folder: str) -> Prepared:
        nonlocal is_made
        await going.wait()
        is_made = True
        return prepared

    async def load() -> None:
        nonlocal taken
        async with HeadStart(prepare, "here") as head_start:  # type: ignore[arg-type]
            taken = await head_start.take() is not None
            await asyncio.Event().wait()

    loading = asyncio.create_task(load())
    await asyncio.sleep(0.01)
    going.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    loading.cancel()
    (how,) = await asyncio.gather(loading, return_exceptions=True)
    assert isinstance(how, asyncio.CancelledError)
    assert prepared.dropped == (is_made and not taken), "whoever took it ends it"
