"""What a model's author recommends: end tokens and sampling defaults.

These come from generation_config.json, config.json and tokenizer_config.json, each of which may be
missing. Knows nothing about requests, except how to fill in what they leave open.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from neuron.text.files import broken, read_config
from protocol.generate import Sampling

GENERATION_CONFIG = "generation_config.json"
MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

N = TypeVar("N", int, float)


class _GenerationConfig(msgspec.Struct, frozen=True):
    """The keys of transformers' GenerationConfig that matter here."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    eos_token_id: int | list[int] | None = None


class _TextConfig(msgspec.Struct, frozen=True):
    eos_token_id: int | list[int] | None = None


class _ModelConfig(msgspec.Struct, frozen=True):
    eos_token_id: int | list[int] | None = None
    text_config: _TextConfig | None = None
    """Where multimodal models keep the keys of their language model."""


class _Token(msgspec.Struct, frozen=True):
    content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
    eos_token: str | _Token | None = None


class GenerationDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling values for requests that leave them open; None = the author set none."""

    temperature: float | None = None
    """0 where the author asks for greedy decoding (``"do_sample": false``)."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @classmethod
    def load(cls, folder: Path) -> "GenerationDefaults":
        """Loads the defaults of the model in *folder*.

        Raises :class:`protocol.errors.FleetError`, naming file and key, for a value of the wrong
        type or out of range.
        """
        path = folder / GENERATION_CONFIG
        config = read_config(path, _GenerationConfig) or _GenerationConfig()
        _check(path, "temperature", config.temperature, lambda value: value >= 0, "at least 0")
        _check(path, "top_k", config.top_k, lambda value: value >= 0, "at least 0")
        _check(path, "top_p", config.top_p, lambda value: 0 < value <= 1, "above 0 and at most 1")
        _check(path, "min_p", config.min_p, lambda value: 0 <= value <= 1, "between 0 and 1")
        return cls(
            temperature=0.0 if config.do_sample is False else config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
        )

    def fill(self, sampling: Sampling) -> Sampling:
        """Returns *sampling* with these values where it has none of its own."""
        return msgspec.structs.replace(
            sampling,
            temperature=_first(sampling.temperature, self.temperature),
            top_k=_first(sampling.top_k, self.top_k),
            top_p=_first(sampling.top_p, self.top_p),
            min_p=_first(sampling.min_p, self.min_p),
        )


def end_token_ids(folder: Path, token_id: Callable[[str], int | None]) -> frozenset[int]:
    """The tokens that end an answer: all that any of the model's files calls its end token.

    The files often disagree (end of turn in one, end of text in another), and a model that is not
    stopped at every one of them rambles on. *token_id* looks up a token's text.
    """
    generation = read_config(folder / GENERATION_CONFIG, _GenerationConfig) or _GenerationConfig()
    model = read_config(folder / MODEL_CONFIG, _ModelConfig) or _ModelConfig()
    ids = {*_ids(generation.eos_token_id), *_ids(model.eos_token_id)}
    if model.text_config is not None:
        ids.update(_ids(model.text_config.eos_token_id))
    tokenizer = read_config(folder / TOKENIZER_CONFIG, _TokenizerConfig) or _TokenizerConfig()
    if tokenizer.eos_token is not None:
        token = tokenizer.eos_token
        named = token_id(token if isinstance(token, str) else token.content)
        ids.update([] if named is None else [named])
    return frozenset(identity for identity in ids if identity >= 0)  # -1 stands for "none"


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _first(own: N | None, default: N | None) -> N | None:
    return default if own is None else own


def _check(
    path: Path, key: str, value: float | None, fits: Callable[[float], bool], range_text: str
) -> None:
    if value is not None and not fits(value):
        raise broken(path, f"key {key!r}: the value {value} is not {range_text}")
