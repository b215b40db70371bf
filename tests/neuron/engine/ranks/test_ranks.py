"""An engine of two ranks does everything that one of one rank does."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from neuron.engine_process.client import EngineLoadError, EngineProcess
from neuron.engine_process.rank_processes import Arrived
from neuron.ipc.messages import (
    Add,
    Loading,
    LoadStage,
    Logprobs,
    Output,
    Progress,
    SamplingParams,
    Start,
)
from neuron.models.errors import LoadCode
from tests.support.tiny_models import write_checkpoint

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("engine_ranks")]

SHARED = random.Random(3).choices(range(250), k=64)
"""The beginning of every prompt, four blocks."""
TOKENS = 30


class Answer(NamedTuple):
    """What came of one request."""

    tokens: list[int]
    logprobs: list[float]
    prompt: list[float]
    cached: int


@pytest_asyncio.fixture(name="folder", scope="module", loop_scope="module")
async def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(name="pair", scope="module", loop_scope="module")
async def engines(folder: Path) -> AsyncIterator[tuple[EngineProcess, EngineProcess]]:
    """Of one rank and of two, with little cache, so that sequences have to give way."""
    bytes_per_token = 2 * 3 * 2 * 32 * 4
    one = await EngineProcess.start(
        Start(str(folder), threads=1, kv_cache_bytes=20 * 16 * bytes_per_token)
    )
    two = await EngineProcess.start(
        Start(
            str(folder),
            threads=1,
            devices=("cpu", "cpu"),
            kv_cache_bytes=20 * 16 * bytes_per_token // 2,
        )
    )
    yield one, two
    await one.stop()
    await two.stop()


async def answered(engine: EngineProcess, adds: list[Add]) -> dict[int, Answer]:
    async def one(add: Add) -> tuple[int, Answer]:
        tokens: list[int] = []
        scores: list[Logprobs] = []
        prompt: list[Logprobs] = []
        cached = 0
        async for event in await engine.add(add):
            assert isinstance(event, Output | Progress), event  # or it is computed anew
            if isinstance(event, Output):
                tokens += event.tokens
                scores += event.logprobs
                prompt += event.prompt_logprobs or []
                cached += event.cached
        found = [score.token for score in scores], [score.token for score in prompt]
        return add.id, Answer(tokens, *found, cached)

    return dict(await asyncio.gather(*map(one, adds)))


def requests(first: int, count: int) -> list[Add]:
    chance = random.Random(first)
    return [
        Add(
            number,
            SHARED + chance.choices(range(250), k=chance.randint(1, 40)),
            SamplingParams(
                TOKENS,
                temperature=chance.choice([0.0, 0.8]),
                seed=number,
                logprobs=chance.choice([None, 3]),
                prompt_logprobs=chance.choice([None, None, 1]),
                frequency_penalty=chance.choice([0.0, 0.5]),
            ),
        )
        for number in range(first, first + count)
    ]


async def test_batches_caches_chunks_and_preemption(
    pair: tuple[EngineProcess, EngineProcess],
) -> None:
    one, two = pair
    assert one.ready.kv_cache_tokens == two.ready.kv_cache_tokens
    adds = requests(100, 12)
    expected, found = await answered(one, adds), await answered(two, adds)
    for number, answer in expected.items():
        assert found[number].tokens == answer.tokens
        assert found[number].logprobs == pytest.approx(answer.logprobs, abs=1e-4)
        assert found[number].prompt == pytest.approx(answer.prompt, abs=1e-4)
    assert two.stats.preemptions > 0
    assert one.stats.preemptions > 0
    plain = [Add(number, adds[0].prompt, SamplingParams(TOKENS)) for number in (1, 2)]
    first, again = [(await answered(two, [add]))[add.id] for add in plain]
    assert again.tokens == first.tokens
    assert again.cached > 0


async def test_an_answer_goes_on_on_another_number_of_ranks(
    pair: tuple[EngineProcess, EngineProcess],
) -> None:
    one, two = pair
    add = Add(1, [*SHARED, 7, 8], SamplingParams(TOKENS, temperature=0.7, seed=5))
    whole = (await answered(one, [add]))[1].tokens
    for engine, cut in ((two, 11), (one, 17)):
        rest = Add(cut, add.prompt, add.sample, whole[:cut])
        assert (await answered(engine, [rest]))[cut].tokens == whole[cut:]


async def test_an_abort_leaves_all_ranks_in_step(pair: tuple[EngineProcess, EngineProcess]) -> None:
    _, two = pair
    stream = await two.add(Add(500, SHARED, SamplingParams(1000)))
    async for event in stream:
        if isinstance(event, Output):
            two.abort(500)
    assert (await answered(two, [Add(501, SHARED, SamplingParams(5))]))[501].tokens


async def test_what_a_rank_told_of_its_load_may_come_late(
    pair: tuple[EngineProcess, EngineProcess],
) -> None:
    _, two = pair
    two._ranks._arrived.put_nowait(Arrived(1, [Loading(LoadStage.WARMING, 1, 1)]))
    assert (await answered(two, [Add(502, SHARED, SamplingParams(5))]))[502].tokens


async def test_nobody_is_blamed_for_being_killed(folder: Path) -> None:
    engine = await EngineProcess.start(Start(str(folder), devices=("cpu", "cpu")))
    engine._ranks.kill()
    assert (await engine.died).startswith("2 ranks: signal SIGKILL")


@pytest.mark.parametrize(
    ("ranks", "damage", "code", "words"),
    [
        (3, "", LoadCode.UNSUPPORTED, "one of 1, 2, 4"),
        (2, "shard", LoadCode.NOT_FOUND, "the index names 3 shards, 2 are there"),
        (2, "end", LoadCode.CORRUPT, "damaged"),
    ],
)
async def test_a_load_that_fails_on_every_rank_fails_once(
    tmp_path: Path, ranks: int, damage: str, code: LoadCode, words: str
) -> None:
    folder = write_checkpoint(tmp_path, shards=3)
    last = max(folder.glob("*.safetensors"))
    if damage == "shard":
        last.unlink()
    elif damage == "end":
        last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(EngineLoadError) as caught:
        await EngineProcess.start(Start(str(folder), devices=("cpu",) * ranks))
    assert caught.value.code == code
    assert words in caught.value.message
