"""Prompters are read once for what is the same file, and given back when nobody needs them."""

import os
import shutil
from pathlib import Path

import pytest

from neuron.service.jobs import prompters as module
from neuron.service.jobs.prompters import Prompters
from protocol.errors import FleetError
from tests.neuron.text.models import make_model

pytestmark = pytest.mark.asyncio


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Models that have one tokenizer, in copies."""
    template = "{{ messages }}"
    first = make_model(tmp_path / "0", template=template)
    return [first, *(shutil.copytree(first, tmp_path / str(n)) for n in range(1, 4))]


async def test_equal_files_are_parsed_once(folders: list[Path]) -> None:
    prompters = Prompters()
    found = [await prompters.get(folder, "auto") for folder in folders]
    assert len({id(prompter.tokenizer._backend) for prompter in found}) == 1
    assert len({id(prompter) for prompter in found}) == len(folders)
    assert await prompters.get(folders[0], "auto") is found[0]


async def test_a_changed_folder_is_read_again(folders: list[Path]) -> None:
    prompters = Prompters()
    before = await prompters.get(folders[0], "auto")
    template = folders[0] / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    os.utime(template, (1, 2_000_000_000))
    after = await prompters.get(folders[0], "auto")
    assert after is not before
    assert after.tokenizer._backend is before.tokenizer._backend
    (folders[0] / "tokenizer.json").write_text("{")
    os.utime(folders[0] / "tokenizer.json", (1, 2_000_000_001))
    with pytest.raises(FleetError, match=r"tokenizer\.json"):
        await prompters.get(folders[0], "auto")


async def test_only_so_much_is_kept(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    size = (folders[0] / "tokenizer.json").stat().st_size
    prompters = Prompters()
    monkeypatch.setattr(module, "KEPT_BYTES", size)
    first = await prompters.get(folders[0], "auto")
    await prompters.get(folders[1], "auto")
    assert await prompters.get(folders[0], "auto") is first, "copies count once"
    other = folders[2] / "tokenizer.json"
    other.write_text(other.read_text() + " ")
    await prompters.get(folders[2], "auto")
    assert len(prompters._kept) == 1, "another file has no room beside it"
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    latest = await prompters.get(folders[3], "auto")
    assert list(prompters._kept.values()) == [latest], "the latest is kept whatever its size"
