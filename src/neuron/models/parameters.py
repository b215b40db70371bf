"""The tensors that a decoder reads, and what one rank holds of each; no torch.

Owns what is known of ``decoder.py`` from the config alone, so that a load can be checked and sized
before a decoder is built. Must not know where the tensors lie. That the decoder has exactly these
is tested for every family and trait (``tests/neuron/models/test_parameters.py``).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from neuron.layers.share import Share, even_share, kv_share
from neuron.models.config import ModelConfig

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


class Parameter(NamedTuple):
    """A tensor of the checkpoint, and the range of it that a rank holds."""

    shape: tuple[int, ...]
    """Shape of the whole tensor, as it is stored."""
    held: tuple[int, ...]
    """Shape of the range; it differs from *shape* along one dimension at most."""

    @property
    def elements(self) -> int:
        """Numbers that the rank holds."""
        return math.prod(self.held)


class _Shares(NamedTuple):
    """What a rank has of each layer, in rows or columns of its matrices."""

    query: Share
    key: Share
    inner: Share


def parameters(config: ModelConfig, rank: int = 0, ranks: int = 1) -> dict[str, Parameter]:
    """Maps each name, in ``checkpoint.canonical`` form, to its tensor, in the decoder's order."""
    shares, hidden = _shares(config, rank, ranks), config.hidden_size
    table = _rows(even_share(config.vocab_size, rank, ranks), hidden)
    found = {EMBEDDING: table}
    layer = dict(_layer(config, shares))
    for index in range(config.layers):
        found.update((f"layers.{index}.{name}", parameter) for name, parameter in layer.items())
    found["norm.weight"] = _whole(hidden)
    if not config.tied:
        found[HEAD] = table
    return found


def linear_shapes(config: ModelConfig, rank: int = 0, ranks: int = 1) -> list[tuple[int, int]]:
    """Lists the shapes (rows, inputs) of all linear maps but the head, each once, sorted.

    Projections of one input are one matrix: query, key and value, and gate and up.
    """
    shares, hidden = _shares(config, rank, ranks), config.hidden_size
    query, key, inner = (share.size for share in shares)
    shapes = {(query + 2 * key, hidden), (hidden, query), (2 * inner, hidden), (hidden, inner)}
    return sorted(shapes)


def _shares(config: ModelConfig, rank: int, ranks: int) -> _Shares:
    heads = even_share(config.heads, rank, ranks), kv_share(config.kv_heads, rank, ranks)
    query, key = (Share(*(each * config.head_dim for each in share)) for share in heads)
    return _Shares(query, key, even_share(config.intermediate_size, rank, ranks))


def _layer(config: ModelConfig, shares: _Shares) -> Iterator[tuple[str, Parameter]]:
    traits, hidden = config.traits, config.hidden_size
    query, key, inner = shares
    qkv = {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": key}
    yield from _column_parallel(qkv, hidden, bias=traits.qkv_bias)
    yield from _row_parallel("self_attn.o_proj", query, hidden, bias=traits.output_bias)
    if traits.head_norms:
        yield "self_attn.q_norm.weight", _whole(config.head_dim)
        yield "self_attn.k_norm.weight", _whole(config.head_dim)
    gate_up = {"mlp.gate_proj": inner, "mlp.up_proj": inner}
    yield from _column_parallel(gate_up, hidden, bias=traits.mlp_bias)
    yield from _row_parallel("mlp.down_proj", inner, hidden, bias=traits.mlp_bias)
    yield "input_layernorm.weight", _whole(hidden)
    yield "post_attention_layernorm.weight", _whole(hidden)
    if traits.sandwich_norms:
        yield "pre_feedforward_layernorm.weight", _whole(hidden)
        yield "post_feedforward_layernorm.weight", _whole(hidden)


def _column_parallel(
    parts: dict[str, Share], inputs: int, *, bias: bool
) -> Iterator[tuple[str, Parameter]]:
    """Each rank has some of the rows, and their biases."""
    for name, share in parts.items():
        yield f"{name}.weight", _rows(share, inputs)
    if bias:
        for name, share in parts.items():
            yield f"{name}.bias", Parameter((share.whole,), (share.size,))


def _row_parallel(
    name: str, inputs: Share, outputs: int, *, bias: bool
) -> Iterator[tuple[str, Parameter]]:
    """Each rank has some of the columns, and the whole bias."""
    yield f"{name}.weight", Parameter((outputs, inputs.whole), (outputs, inputs.size))
    if bias:
        yield f"{name}.bias", _whole(outputs)


def _rows(share: Share, columns: int) -> Parameter:
    return Parameter((share.whole, columns), (share.size, columns))


def _whole(size: int) -> Parameter:
    return Parameter((size,), (size,))
