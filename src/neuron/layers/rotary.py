"""Rotary position embedding (arXiv 2104.09864), with the scalings for long contexts.

Frequencies and angles are float32 and computed as in transformers, because a position of a few
thousand magnifies any rounding difference of the frequency.
"""

import math

import torch

from neuron.layers.rope import Rope, RopeType


def frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Inverse frequencies ``[head_dim / 2]``, float32, on the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    wavelengths = rope.theta**exponents  # (head_dim / 2)
    match rope.type:
        case RopeType.DEFAULT:
            return 1.0 / wavelengths
        case RopeType.LINEAR:
            return 1.0 / wavelengths / rope.factor
        case RopeType.LLAMA3:
            return _llama3(1.0 / wavelengths, rope)
        case RopeType.YARN:
            return _yarn(wavelengths, rope, head_dim)


def _llama3(inverse: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Llama 3.1: low frequencies are divided by the factor, high ones kept, a blend in between."""
    wavelength = 2 * math.pi / inverse
    low = rope.original_context / rope.low_freq_factor
    high = rope.original_context / rope.high_freq_factor
    stretched = torch.where(wavelength > low, inverse / rope.factor, inverse)
    smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blend = (1 - smooth) * stretched / rope.factor + smooth * stretched
    between = (wavelength >= high) & (wavelength <= low)
    return torch.where(between, blend, stretched)


def _yarn(wavelengths: torch.Tensor, rope: Rope, head_dim: int) -> torch.Tensor:
    """YaRN's NTK-by-parts interpolation (arXiv 2309.00071, section 3.2)."""
    low, high = (_rotation_dim(rope, head_dim, beta) for beta in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # the ramp must not be empty
    dims = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    ramp = ((dims - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _rotation_dim(rope: Rope, head_dim: int, rotations: float) -> float:
    """The dimension that makes *rotations* turns over the original context."""
    turns = rope.original_context / (rotations * 2 * math.pi)
    return head_dim * math.log(turns) / (2 * math.log(rope.theta))


def angles(
    inverse: torch.Tensor, positions: torch.Tensor, scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of *positions* ``[tokens]`` for :func:`rotate`, in *dtype*.

    Both are ``[tokens, 1, head_dim]``; the first half of the sines is negated.
    """
    half = positions.float()[:, None] * inverse  # (tokens, head_dim / 2)
    cos, sin = half.cos(), half.sin()
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    cos, sin = cos.to(dtype), sin.to(dtype)
    return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates *x* ``[tokens, heads, head_dim]``; the two halves of a head form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)
