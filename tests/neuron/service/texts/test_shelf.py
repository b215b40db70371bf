"""Texts are read once for each model, kept while they may be needed, and given back after that."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from neuron.service.texts import shelf as module
from neuron.service.texts.shelf import Shelf
from protocol.errors import FleetError
from tests.neuron.text.models import make_model
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Models that have one tokenizer, in copies."""
    template = "{{ messages }}"
    first = make_model(tmp_path / "0", template=template)
    return [first, *(shutil.copytree(first, tmp_path / str(n)) for n in range(1, 4))]


@pytest_asyncio.fixture
async def shelf() -> AsyncIterator[Shelf]:
    shelf = Shelf()
    yield shelf
    pids = shelf.pids
    await shelf.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def used(shelf: Shelf, folder: Path) -> tuple[int, ...]:
    async with shelf.use(folder, "auto") as texts:
        return texts.pids


async def test_a_model_is_read_once(shelf: Shelf, folders: list[Path]) -> None:
    first, again = await asyncio.gather(used(shelf, folders[0]), used(shelf, folders[0]))
    assert first == again == await used(shelf, folders[0]) == shelf.pids
    assert await used(shelf, folders[1]) != first
    assert len(shelf.pids) == 2


async def test_a_changed_folder_is_read_again(shelf: Shelf, folders: list[Path]) -> None:
    before = await used(shelf, folders[0])
    template = folders[0] / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    os.utime(template, (1, 2_000_000_000))
    assert await used(shelf, folders[0]) != before
    (folders[0] / "tokenizer.json").write_text("{")
    os.utime(folders[0] / "tokenizer.json", (1, 2_000_000_001))
    for _ in range(2):  # a failure is not kept
        with pytest.raises(FleetError, match=r"tokenizer\.json"):
            await used(shelf, folders[0])


async def test_only_so_much_is_kept(
    shelf: Shelf, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folders[0] / "tokenizer.json").stat().st_size
    monkeypatch.setattr(module, "KEPT_BYTES", 2 * size)
    async with shelf.use(folders[0], "auto") as in_use:
        second = await used(shelf, folders[1])
        third = await used(shelf, folders[2])
        assert set(shelf.pids) == {*in_use.pids, *second, *third}
        fourth = await used(shelf, folders[3])
        expected = {*in_use.pids, *third, *fourth}
        await until(lambda: set(shelf.pids) == expected, what="the one used longest ago to go")
        monkeypatch.setattr(module, "KEPT_BYTES", 1)
        assert await used(shelf, folders[2]) == third
        await until(lambda: set(shelf.pids) == {*in_use.pids, *third}, what="the latest alone")
        await until(lambda: not Path(f"/proc/{fourth[0]}").exists(), what="its end")
