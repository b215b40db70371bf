"""Where a checkpoint's tensor, or the range of it that a rank holds, is loaded to."""

from typing import NamedTuple, Self

import torch


class WeightTarget(NamedTuple):
    """The destination of a tensor, or of the range along one dimension that a rank holds."""

    target: torch.Tensor
    """Contiguous, and as large as the range."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    dim: int = 0
    """Dimension along which the range is taken."""
    begin: int = 0
    """First index of the range."""

    @classmethod
    def whole(cls, target: torch.Tensor) -> Self:
        """The target for a complete tensor."""
        return cls(target, tuple(target.shape))

    @property
    def is_cut_across(self) -> bool:
        """Whether the range is not one contiguous run of bytes in the file."""
        return self.dim > 0 and self.target.shape != self.shape
