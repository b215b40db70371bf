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
        pass
    assert made.dropped == 1
    with pytest.raises(RuntimeError):
        async with HeadStart(prepare, "here"):  # type: ignore[arg-type]
            raise RuntimeError
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
