"""The name codec is a bijection onto safe tokens."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import keys, subjects
from protocol.job import Priority
from protocol.names import (
    InvalidName,
    check_host_id,
    check_model_id,
    host_id_from,
    new_job_id,
    token,
    untoken,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(texts)
def test_tokens_are_safe_and_come_back(text: str) -> None:
    written = token(text)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", written)
    assert untoken(written) == text


@given(st.text(min_size=1, max_size=20))
def test_only_canonical_tokens_are_read(text: str) -> None:
    try:
        decoded = untoken(text)
    except InvalidName:
        return
    assert token(decoded) == text


@given(texts, texts)
def test_different_names_have_different_tokens(a: str, b: str) -> None:
    assert (token(a) == token(b)) == (a == b)


def test_the_documented_spellings() -> None:
    assert token("Qwen/Qwen3-8B") == "Qwen=2FQwen3-8B"
    assert token("llama3.1:8b") == "llama3=2E1=3A8b"
    for bad in ("Qwen=2fx", "=41", "a b", "=", "=F", "=C3", ""):
        with pytest.raises(InvalidName):
            untoken(bad)


def test_ids() -> None:
    assert re.fullmatch("[0-9a-f]{32}", new_job_id())
    assert check_host_id("gpu-03") == "gpu-03"
    for bad in ("", "GPU", "a.b", "x" * 49, "a b"):
        with pytest.raises(InvalidName, match="cannot name a node"):
            check_host_id(bad)
    for bad in ("", "x" * 201, "a\nb"):
        with pytest.raises(InvalidName):
            check_model_id(bad)


@given(st.text(max_size=80))
def test_any_host_name_becomes_a_valid_id(text: str) -> None:
    check_host_id(host_id_from(text))


@given(texts)
def test_keys_and_subjects_round_trip(model: str) -> None:
    assert keys.parse_node_key(keys.node_model("n1", model)) == ("n1", "model", model)
    assert subjects.model_of_job(subjects.job(model, Priority.LOW)) == model


def test_foreign_keys_are_refused() -> None:
    for bad in ("x", "a.b.c.d", "n1.model", "N1.info"):
        with pytest.raises(InvalidName):
            keys.parse_node_key(bad)
