"""A layer's self-attention: projections, norms and rotation of the heads, paged attention.

Owns the fused q, k, v matrix and how the traits shape it; the cache and the attention over it are
in ``layers/attention.py``.
"""

from collections.abc import Iterator

import torch
from torch import nn

from neuron.layers.attention import AttentionStep, attend
from neuron.layers.cache import KVCache
from neuron.layers.group import Group
from neuron.layers.linear import ColumnParallelLinear, Linear, RowParallelLinear
from neuron.layers.norm import HeadNorm
from neuron.layers.rotary import rotate
from neuron.layers.share import Share
from neuron.layers.weight_target import WeightTarget
from neuron.models.config import ModelConfig

Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of a step's positions, for :func:`~neuron.layers.rotary.rotate`."""


class SelfAttention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) of one layer."""

    def __init__(self, config: ModelConfig, layer: int, group: Group) -> None:
        super().__init__()
        traits, hidden = config.traits, config.hidden_size
        self.layer = layer
        self.window = config.windows[layer]
        self.scale = traits.attention_scale
        heads, kv_heads = group.share(config.heads), group.heads(config.kv_heads)
        self.heads, self.kv_heads, self.dim = heads.size, kv_heads.size, config.head_dim
        q, kv = (Share(*(each * self.dim for each in share)) for share in (heads, kv_heads))
        parts = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        self.qkv = ColumnParallelLinear(hidden, parts, bias=traits.qkv_bias)
        self.output = RowParallelLinear(q, "o_proj", hidden, group, bias=traits.output_bias)
        self.norm = None
        if traits.head_norms:
            self.norm = HeadNorm(
                self.heads, self.kv_heads, self.dim, config.norm_eps, offset=traits.offset_norms
            )

    def slots(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        """Yields checkpoint names with the (slices of) parameters that they fill."""
        for linear in self.linear_maps():
            yield from linear.slots(prefix).items()
        yield from self.norm_slots(prefix)

    def linear_maps(self) -> tuple[Linear, ...]:
        """Its linear maps, in the order in which they are computed."""
        return (self.qkv, self.output)

    def norm_slots(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        """Yields those names and parameters that belong to the norms of its heads."""
        if self.norm is not None:
            yield f"{prefix}q_norm.weight", WeightTarget.whole(self.norm.query)
            yield f"{prefix}k_norm.weight", WeightTarget.whole(self.norm.key)

    def forward(
        self, x: torch.Tensor, turn: Turn, cache: KVCache, step: AttentionStep
    ) -> torch.Tensor:
        """Maps *x* ``[tokens, hidden]`` to the same shape; caches the new keys and values."""
        qkv = self.qkv(x).view(len(x), -1, self.dim)  # (tokens, heads + 2 kv_heads, dim)
        both = self.heads + self.kv_heads
        qk, norm = qkv[:, :both], self.norm
        qk = rotate(qk if norm is None else norm(qk), *turn)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, both:]
        out = attend(q, k, v, cache.layer(self.layer), step, self.window, scale=self.scale)
        attended: torch.Tensor = self.output(out.reshape(len(x), -1))
        return attended
