"""Counter-based Gumbel noise: a pure function of (seed, choice, position, token id).

The hash is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): ``mix(x)`` adds the golden gamma and
runs the finaliser of David Stafford's variant 13, modulo 2**64. With ``+`` wrapping:

    key  = mix(mix(mix(seed) + choice) + position)         on the host, in Python integers
    word = mix(key + token_id * GAMMA)                     on the device, in int64 arithmetic
    u    = ((word >>> 12) + 0.5) * 2**-52                  in (0, 1), exact in float64
    g    = -log(-log(u))

Integer arithmetic wraps the same on every device, so the words are identical everywhere.
"""

import torch

GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """One SplitMix64 output for state *value*; unsigned 64 bits."""
    z = (value + GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLY_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLY_2) & _MASK
    return z ^ (z >> 31)


def row_key(seed: int, choice: int, position: int) -> int:
    """The key of one draw, as a signed 64-bit integer; *seed* counts modulo 2**64."""
    return _signed(mix((mix((mix(seed & _MASK) + choice) & _MASK) + position) & _MASK))


def words(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Random words, int64 of *ids*' shape ``[rows, candidates]``, for *keys* ``[rows, 1]``."""
    z = ids * _signed(GAMMA) + (keys + _signed(GAMMA))
    z = (z ^ _shift(z, 30)) * _signed(_MULTIPLY_1)
    z = (z ^ _shift(z, 27)) * _signed(_MULTIPLY_2)
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right; torch's own carries the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float64 of *ids*' shape, for *keys* ``[rows, 1]``."""
    uniform = (_shift(words(keys, ids), 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()
