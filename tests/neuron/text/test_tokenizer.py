"""Token ids, end tokens and recommended sampling from a model folder's files."""

import asyncio
import json
from pathlib import Path

import pytest

from neuron.text.generation import GenerationDefaults
from neuron.text.tokenizer import Tokenizer, prompt_hash
from protocol.errors import FleetError
from tests.support.tiny_models import make_tokenizer


def _folder(path: Path, **files: object) -> Path:
    path.mkdir(exist_ok=True)
    make_tokenizer().save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


async def test_encoding_is_the_same_in_a_thread(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(_folder(tmp_path))
    text = "Grüße 🎉 " * 10_000
    assert await tokenizer.encode_async(text) == tokenizer.encode(text)
    assert tokenizer.encode("") == []


async def test_a_long_text_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(_folder(tmp_path))
    encoding = asyncio.create_task(tokenizer.encode_async("word " * 400_000))
    ticks = 0
    while not encoding.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 50


def test_end_tokens_are_the_union_of_all_files(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, generation_config={"eos_token_id": [7, 5]}, config={"eos_token_id": 6}
    )
    assert Tokenizer.load(folder).end_tokens == (5, 6, 7)
    assert Tokenizer.load(_folder(tmp_path / "none")).end_tokens == ()


def test_an_end_token_may_be_named_as_text(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    token = "a"
    known = Tokenizer.load(folder).encode(token)
    for form in (token, {"content": token, "special": True}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": form}))
        assert list(Tokenizer.load(folder).end_tokens) == known


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(FleetError, match=r"in tokenizer\.json, the tokenizer cannot be read"):
        Tokenizer.load(tmp_path)


def test_recommended_sampling(tmp_path: Path) -> None:
    defaults = GenerationDefaults.load(tmp_path)
    assert (defaults.temperature, defaults.top_k) == (None, None)
    for content, temperature in (
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "unknown": [1]}, 0.6),
        ({"do_sample": False, "temperature": 0.6}, 0.0),
        ({"temperature": None}, None),
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
        assert GenerationDefaults.load(tmp_path).temperature == temperature


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"temperature": "warm"}, "key 'temperature': expected `float | null`, got `str`"),
        ({"top_p": 3}, "key 'top_p': 3.0 is not between 0 and 1"),
        ([], "a JSON list instead of an object"),
    ],
)
def test_wrong_values_name_file_and_key(tmp_path: Path, content: object, words: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(FleetError) as caught:
        GenerationDefaults.load(tmp_path)
    assert "generation_config.json" in str(caught.value)
    assert words in str(caught.value)


def test_the_prompt_hash_depends_on_every_token() -> None:
    assert prompt_hash([1, 2, 3]) == prompt_hash([1, 2, 3])
    assert len({prompt_hash(ids) for ids in ([1, 2, 3], [1, 2], [1, 23], [3, 2, 1], [])}) == 5
