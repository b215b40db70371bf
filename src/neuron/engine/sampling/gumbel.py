"""Counter-based Gumbel noise: a pure function of (seed, choice, position, token id).

The hash is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): ``mix(x)`` adds the golden gamma and runs
the finaliser of David Stafford's variant 13, modulo 2**64. With ``+`` wrapping:

    key  = mix(mix(mix(seed) + choice) + position)         on the host, in Python integers
    word = mix(key + token_id * GAMMA)                     on the device, in int64 arithmetic
    u    = ((word >>> 12) + 0.5) * 2**-52                  in (0, 1), exact in float64
    g    = -log(-log(u))

Integer arithmetic wraps the same on every device, so the words are identical everywhere.

The last step of the hash does not change the first 31 bits of a word; ``unfinished_words`` and
``Hasher`` stop before it, for callers that need only those bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """One SplitMix64 output for state *value*, as an unsigned 64-bit integer."""
    z = (value + GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLY_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLY_2) & _MASK
    return z ^ (z >> 31)


def row_key(seed: int, choice: int, position: int) -> int:
    """The key of one draw, as a signed 64-bit integer; *seed* is taken modulo 2**64."""
    return _signed(mix((mix((mix(seed & _MASK) + choice) & _MASK) + position) & _MASK))


def words(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Random words, int64 of *ids*' shape ``[rows, candidates]``, for *keys* ``[rows, 1]``."""
    z = unfinished_words(keys, ids)
    return z ^ _shift(z, 31)


def unfinished_words(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The same as :func:`words` without the last step: only the first 31 bits are final."""
    z = ids * _signed(GAMMA) + (keys + _signed(GAMMA))
    z = (z ^ _shift(z, 30)) * _signed(_MULTIPLY_1)
    return (z ^ _shift(z, 27)) * _signed(_MULTIPLY_2)


class Hasher:
    """:func:`unfinished_words` of consecutive tokens on a CPU, in reused buffers.

    NumPy has unsigned shifts and fast 64-bit products: it takes less than half of torch's time.
    """

    def __init__(self, most: int) -> None:
        self._steps = np.arange(most, dtype=np.uint64) * np.uint64(GAMMA)
        self._words = np.empty(most, dtype=np.uint64)
        self._spare = np.empty(most, dtype=np.uint64)

    def early_words(self, key: int, start: int, stop: int) -> NDArray[np.int64]:
        """Words of the tokens from *start* to *stop*; the next call overwrites them."""
        z, spare = self._words[: stop - start], self._spare[: stop - start]
        first = np.uint64((key + GAMMA * (start + 1)) & _MASK)
        np.add(self._steps[: stop - start], first, out=z)
        for bits, factor in ((30, _MULTIPLY_1), (27, _MULTIPLY_2)):
            np.right_shift(z, np.uint64(bits), out=spare)
            np.bitwise_xor(z, spare, out=z)
            np.multiply(z, np.uint64(factor), out=z)
        return z.view(np.int64)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right; torch's own shift keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float64 of *ids*' shape, for *keys* ``[rows, 1]``."""
    uniform = (_shift(words(keys, ids), 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()
