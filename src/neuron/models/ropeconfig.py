"""Reads rotary parameters from a config.json, in the old and the new spelling.

Old: ``rope_theta`` beside ``rope_scaling: {type | rope_type, …}``. New:
``rope_parameters: {rope_type, rope_theta, …}``. The precedence is that of transformers:
``rope_scaling`` replaces ``rope_parameters``, and a theta inside the dict wins over one beside it.
"""

import math
from typing import Any

import msgspec

from neuron.layers.rope import Rope, RopeType
from neuron.models.errors import LoadCode, LoadError

DEFAULT_THETA = 10_000.0
LEAST, MOST = 1e-9, 1e9
"""Limits of plausible parameters; beyond them, angles would no longer be finite."""


class _RawRope(msgspec.Struct):
    type: str | None = None
    rope_type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    partial_rotary_factor: float | None = None


def parse_rope(
    parameters: dict[str, Any] | None,
    theta: float | None,
    *,
    max_positions: int,
    original_positions: int | None,
) -> Rope:
    """Resolves a config's rope dict (in either spelling) into a :class:`Rope`.

    *max_positions* and *original_positions* are the config's ``max_position_embeddings`` and its
    own top-level ``original_max_position_embeddings``. Raises :class:`LoadError` for a type or
    combination that the engine cannot compute.
    """
    try:
        raw = msgspec.convert(parameters or {}, _RawRope)
    except msgspec.ValidationError as error:
        raise _unsupported(f"its rope parameters cannot be read ({error})") from error
    if parameters and any(isinstance(value, dict) for value in parameters.values()):
        raise _unsupported("it has separate rope parameters for each layer type")
    if raw.partial_rotary_factor not in (None, 1.0):
        raise _unsupported(f"it rotates only a part ({raw.partial_rotary_factor}) of each head")
    kind = _rope_type(raw.rope_type or raw.type or "default")
    base = raw.rope_theta or theta or DEFAULT_THETA
    if not base > 1:  # all pairs of a head would rotate alike, or the last one fastest
        raise _unsupported(f"its rope_theta is {base:g}, but must be above 1")
    original = original_positions or raw.original_max_position_embeddings or max_positions
    match kind:
        case RopeType.DEFAULT:
            return Rope(theta=base)
        case RopeType.LINEAR:
            return Rope(kind, base, _positive("factor", raw.factor))
        case RopeType.LLAMA3:
            return _llama3(raw, base, _positions(original))
        case RopeType.YARN:
            return _yarn(raw, base, _positions(original), max_positions)


def _llama3(raw: _RawRope, base: float, original: int) -> Rope:
    low = _positive("low_freq_factor", raw.low_freq_factor)
    high = _positive("high_freq_factor", raw.high_freq_factor)
    if not high > low:
        raise _unsupported(f"its high_freq_factor {high:g} is not above low_freq_factor {low:g}")
    factor = _positive("factor", raw.factor)
    return Rope(RopeType.LLAMA3, base, factor, original, low, high)


def _yarn(raw: _RawRope, base: float, original: int, max_positions: int) -> Rope:
    factor = raw.factor if raw.factor is not None else max_positions / original
    _positive("factor", factor)
    return Rope(
        type=RopeType.YARN,
        theta=base,
        factor=factor,
        original_context=original,
        beta_fast=_positive("beta_fast", raw.beta_fast or 32.0),
        beta_slow=_positive("beta_slow", raw.beta_slow or 1.0),
        attention_factor=_attention_factor(raw, factor),
        truncate=raw.truncate is not False,
    )


def _attention_factor(raw: _RawRope, factor: float) -> float:
    """YaRN's scale of cos and sin (arXiv 2309.00071, section 3.4), as transformers derives it."""
    if raw.attention_factor is not None:
        return _positive("attention_factor", raw.attention_factor)
    if raw.mscale and raw.mscale_all_dim:
        _positive("mscale", raw.mscale)
        _positive("mscale_all_dim", raw.mscale_all_dim)
        return _mscale(factor, raw.mscale) / _mscale(factor, raw.mscale_all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _rope_type(name: str) -> RopeType:
    try:
        return RopeType(name)
    except ValueError:
        raise _unsupported(f"its rope type is {name!r}") from None


def _positions(value: float) -> int:
    name = "original_max_position_embeddings"
    return int(_positive(name, int(_positive(name, value))))


def _positive(name: str, value: float | None) -> float:
    if value is None or not LEAST <= value <= MOST:
        raise _unsupported(
            f"its rope parameter {name!r} is {value}, but must be from {LEAST} to {MOST}"
        )
    return value


def _unsupported(what: str) -> LoadError:
    return LoadError(
        LoadCode.UNSUPPORTED,
        f"The model's position embedding is not supported: {what}. "
        f"Supported rope types: {', '.join(RopeType)}. "
        "Use a checkpoint with one of these, or correct its config.json.",
    )
