"""Where a tensor of a checkpoint goes, or the range of it that a rank holds."""

from typing import NamedTuple, Self

import torch


class WeightTarget(NamedTuple):
    """The place for a tensor, or for the range of it along one dimension that a rank holds."""

    target: torch.Tensor
    """Contiguous; as large as the range."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dim: int = 0
    """Along which it is cut."""
    begin: int = 0
    """The first index of the range."""

    @classmethod
    def whole(cls, target: torch.Tensor) -> Self:
        """For all of a tensor."""
        return cls(target, tuple(target.shape))

    @property
    def is_cut_across(self) -> bool:
        """Whether the range is no single run of bytes in the file."""
        return self.dim > 0 and self.target.shape != self.shape
