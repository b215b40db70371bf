"""Tokenizers that try to take all memory or time, or are broken, are refused; the loop goes on."""

import os
import time
from pathlib import Path

import pytest

from neuron.service.texts.shelf import Shelf
from neuron.text import tokenizer as module
from protocol.errors import ErrorCode, FleetError
from tests.neuron.text.models import make_model
from tests.neuron.text_process.test_bombs import ALLOWED, LOOP_SECONDS, job, ready, ticking
from tests.support.hostile_tokenizers import Hostile, broken, greedy
from tests.support.waiting import background

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


async def used(folder: Path, hostile: Hostile) -> ErrorCode | None:
    """How a request ends; None: it is answered."""
    make_model(folder, template=TEMPLATE)
    (folder / "tokenizer.json").write_bytes(hostile.content.encode())
    shelf, worst = Shelf(), [0.0]
    began = time.perf_counter()
    refusal: FleetError | None = None
    try:
        async with background(ticking(worst)), shelf.use(folder, "auto") as texts:
            for _ in range(2):
                await texts.prepare(job(hostile.text), ready())
    except FleetError as error:
        refusal = error
    finally:
        await shelf.close()
    assert time.perf_counter() - began < 10, hostile.name
    assert worst[0] < LOOP_SECONDS, f"the loop stood still for {worst[0]:.3f} s"
    assert len(str(refusal)) < 1_000
    assert "Traceback" not in str(refusal)
    return refusal.error.code if refusal else None


async def test_greedy_tokenizers(tmp_path: Path) -> None:
    codes = {
        hostile.name: await used(tmp_path / str(number), hostile)
        for number, hostile in enumerate(greedy())
    }
    assert codes["doubling"] is codes["ten thousand"] is ErrorCode.INVALID_REQUEST
    assert codes["regex 0"] is ErrorCode.INVALID_REQUEST
    assert set(codes.values()) <= {None, *ALLOWED}


async def test_some_broken_tokenizers(tmp_path: Path) -> None:
    for number, hostile in enumerate([*broken()][::9]):
        assert await used(tmp_path / str(number), hostile) in (None, *ALLOWED), hostile.name


@pytest.mark.slow
async def test_all_broken_tokenizers(tmp_path: Path) -> None:
    for number, hostile in enumerate(broken()):
        assert await used(tmp_path / str(number), hostile) in (None, *ALLOWED), hostile.name


async def refusal(folder: Path) -> str:
    shelf = Shelf()
    try:
        with pytest.raises(FleetError) as caught:
            async with shelf.use(folder, "auto"):
                pass
    finally:
        await shelf.close()
    return str(caught.value)


async def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "pipe", template=TEMPLATE)
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")
    began = time.perf_counter()
    assert "not an ordinary file" in await refusal(folder)
    assert time.perf_counter() - began < 2
    folder = make_model(tmp_path / "large", template=TEMPLATE)
    os.truncate(folder / "tokenizer.json", 50 << 30)
    found = await refusal(folder)
    assert "50 GiB" in found
    assert "256 MiB" in found
    folder = make_model(tmp_path / "endless", template=TEMPLATE)
    (folder / "generation_config.json").symlink_to("/dev/zero")
    assert "not an ordinary file" in await refusal(folder)


async def test_a_tokenizer_beyond_its_bounds_says_the_numbers(tmp_path: Path) -> None:
    by_name = {hostile.name: hostile for hostile in broken()}
    for name, number in (("long token", module.MAX_TOKEN_CHARS), ("far token", module.MAX_TOKENS)):
        folder = make_model(tmp_path / name, template=TEMPLATE)
        (folder / "tokenizer.json").write_text(by_name[name].content)
        assert str(number) in await refusal(folder)


async def test_memory_of_a_load_is_bounded(tmp_path: Path) -> None:
    """The reason names the file and the budget."""
    folder = make_model(tmp_path, template=TEMPLATE)
    (folder / "tokenizer_config.json").write_text('{"a": [' + "[]," * 20_000_000 + "[]]}")
    found = await refusal(folder)
    assert "memory" in found
    assert "512" in found
