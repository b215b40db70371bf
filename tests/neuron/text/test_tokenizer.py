"""Tokenizers, end tokens and the sampling defaults of a model folder."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from neuron.text.generation_defaults import GenerationDefaults
from neuron.text.tokenizer import Tokenizer, prompt_hash
from protocol.errors import ErrorCode, FleetError
from protocol.generate import Sampling
from tests.neuron.text.models import SPECIAL, byte_tokenizer, make_model
from tests.support.properties import examples

PROMPT = "<|bos|><|im_start|>user\nGrüße <think> 🕙<|im_end|>\n"


def test_encoding_equals_transformers(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    tokenizer = Tokenizer.load(folder)
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer.encode(PROMPT)
    assert ids == oracle.encode(PROMPT, add_special_tokens=False)
    assert ids[:2] == [256, 257]
    assert tokenizer.decode(ids) == PROMPT
    assert tokenizer.decode(ids, skip_special=True) == "user\nGrüße <think> 🕙\n"
    assert tokenizer.encode("") == []


def test_special_tokens_and_size(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_model(tmp_path))
    assert tokenizer.special_ids == {text: 256 + n for n, text in enumerate(SPECIAL)}
    assert tokenizer.vocab_size == 264
    assert tokenizer.token_id("<think>") == 260
    assert tokenizer.token_id("nothing like it") is None


def test_decoding_never_fails(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_model(tmp_path))
    ids = tokenizer.encode("a🕙b")
    assert tokenizer.decode(ids[:3]) == "a\ufffd"
    assert tokenizer.decode([*ids, 99_999, -1, 2**40]) == "a🕙b"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_model(tmp_path_factory.mktemp("model")))


@examples(25)
@given(text=st.text())
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lengths_of_training_batches_are_ignored(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    limited = byte_tokenizer()
    limited.enable_truncation(max_length=4)
    limited.enable_padding(length=32)
    limited.save(str(folder / "tokenizer.json"))
    assert len(Tokenizer.load(folder).encode("six by")) == 6


def test_prompt_hashes_are_stable() -> None:
    assert prompt_hash([]) == "cae66941d9efbd404e4d88758ea67670"
    assert prompt_hash([1, 2, 70_000]) == prompt_hash((1, 2, 70_000))
    assert len({prompt_hash(ids) for ids in ([], [0], [0, 0], [1, 2], [2, 1], [258])}) == 6


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, {258}),
        ({"config": {"eos_token_id": 7}}, {7, 258}),
        ({"config": {"eos_token_id": None, "text_config": {"eos_token_id": [8]}}}, {8, 258}),
        (
            {"generation_config": {"eos_token_id": [7, 9]}, "config": {"eos_token_id": 9}},
            {7, 9, 258},
        ),
        ({"generation_config": {"eos_token_id": -1}}, {258}),
        ({"tokenizer_config": {"eos_token": "<|pad|>"}}, {259}),
        ({"tokenizer_config": {"eos_token": "not a token"}, "config": {"eos_token_id": 3}}, {3}),
        ({"tokenizer_config": {"eos_token": None}}, set()),
    ],
)
def test_end_tokens_are_those_of_all_files(
    tmp_path: Path, files: dict[str, dict[str, object]], ends: set[int]
) -> None:
    folder = make_model(tmp_path)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    assert Tokenizer.load(folder).end_ids == ends


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        ({}, GenerationDefaults()),
        (
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "do_sample": True},
            GenerationDefaults(0.6, 20, 0.95, 0.0),
        ),
        ({"do_sample": False, "temperature": 0.7, "top_k": 50}, GenerationDefaults(0.0, 50)),
        ({"temperature": None, "top_k": None, "new_key": {"a": 1}}, GenerationDefaults()),
        ({"length_penalty": float("nan"), "top_p": 1}, GenerationDefaults(top_p=1.0)),
    ],
)
def test_generation_defaults(
    tmp_path: Path, config: dict[str, object], defaults: GenerationDefaults
) -> None:
    assert GenerationDefaults.load(make_model(tmp_path, generation_config=config)) == defaults


def test_absent_files_are_no_error(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()


def test_requests_come_before_defaults() -> None:
    defaults = GenerationDefaults(0.6, 20, 0.95)
    assert defaults.fill(Sampling()) == Sampling(temperature=0.6, top_k=20, top_p=0.95)
    own = Sampling(temperature=0.0, top_k=0, max_tokens=5)
    assert defaults.fill(own) == Sampling(temperature=0.0, top_k=0, top_p=0.95, max_tokens=5)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("generation_config", '{"top_k": "20"}', "key 'top_k': expected `int | null`, got `str`"),
        ("generation_config", '{"top_p": true}', "key 'top_p': expected `float | null`"),
        (
            "generation_config",
            '{"temperature": -1}',
            "key 'temperature': the value -1.0 is not at least 0",
        ),
        (
            "generation_config",
            '{"top_p": 1.5}',
            "key 'top_p': the value 1.5 is not above 0 and at most 1",
        ),
        (
            "generation_config",
            '{"temperature": NaN}',
            "key 'temperature': the value nan is not at least 0",
        ),
        ("generation_config", "[1]", "the content is a JSON list instead of an object"),
        ("generation_config", "{", "cannot be read as JSON"),
        ("generation_config", '{"eos_token_id": ["x"]}', "key 'eos_token_id[0]': expected `int`"),
        ("config", '{"eos_token_id": 1.5}', "key 'eos_token_id': expected"),
        ("tokenizer_config", '{"eos_token": 3}', "key 'eos_token': expected"),
        ("tokenizer", '{"version": "1.0"}', "the tokenizers library cannot read"),
    ],
)
def test_broken_files_name_file_and_key(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    folder = make_model(tmp_path)
    (folder / f"{name}.json").write_text(content)
    load = GenerationDefaults.load if name == "generation_config" else Tokenizer.load
    with pytest.raises(FleetError) as caught:
        load(folder)
    assert f"in {name}.json" in str(caught.value)
    assert problem in str(caught.value)
    assert caught.value.error.code is ErrorCode.INVALID_REQUEST


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"no tokenizer\.json.*Load its tokenizer"):
        Tokenizer.load(tmp_path)
