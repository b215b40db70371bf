"""The token embedding and the output head, which may share one matrix."""

import torch
from torch import nn
from torch.nn import functional


class Embedding(nn.Module):
    """A matrix ``[vocab, hidden]``: rows by token id on the way in, logits on the way out."""

    def __init__(self, vocab: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, hidden), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids ``[tokens]`` → ``[tokens, hidden]``."""
        return functional.embedding(tokens, self.weight)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[rows, hidden]`` → float32 logits ``[rows, vocab]``."""
        return functional.linear(hidden, self.weight).float()
