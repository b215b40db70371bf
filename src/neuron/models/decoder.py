"""The decoder that all supported families share; their configs' traits make the difference.

It computes one flat batch of tokens from any mix of sequences; the attention input knows which
token belongs to which sequence. The reference for the numerics is transformers' models of the same
architecture names. Must not know families: it checks traits, never names.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from neuron.layers.attention import AttentionStep
from neuron.layers.cache import KVCache
from neuron.layers.embedding import Embedding, Head
from neuron.layers.group import ALONE, Group
from neuron.layers.linear import Linear, LinearPlan
from neuron.layers.mlp import GatedMLP
from neuron.layers.norm import HeadNorm, RMSNorm
from neuron.layers.rotary import angles, frequencies
from neuron.layers.weight_target import LoadUnit, WeightTarget, place
from neuron.models.attention import SelfAttention, Turn
from neuron.models.config import ModelConfig
from neuron.models.parameters import EMBEDDING, HEAD
from neuron.models.traits import Activation


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of GELU (arXiv 1606.08415)."""
    return functional.gelu(x, approximate="tanh")


def _norm(config: ModelConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.norm_eps, offset=config.traits.offset_norms)


class DecoderLayer(nn.Module):
    """Attention, then the MLP: each reads a normalised copy of the input and adds to it."""

    def __init__(self, config: ModelConfig, layer: int, group: Group) -> None:
        super().__init__()
        traits = config.traits
        activation = gelu_tanh if traits.activation is Activation.GELU_TANH else functional.silu
        self.attention = SelfAttention(config, layer, group)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            activation,
            group,
            bias=traits.mlp_bias,
        )
        self.before_attention, self.before_mlp = _norm(config), _norm(config)
        sandwich = traits.sandwich_norms
        self.after_attention = _norm(config) if sandwich else None
        self.after_mlp = _norm(config) if sandwich else None

    def forward(
        self, x: torch.Tensor, turn: Turn, cache: KVCache, step: AttentionStep
    ) -> torch.Tensor:
        """Maps *x* ``[tokens, hidden]`` to the same shape."""
        attended = self.attention(self.before_attention(x), turn, cache, step)
        if self.after_attention is not None:
            attended = self.after_attention(attended)
        x = x + attended
        thought = self.mlp(self.before_mlp(x))
        if self.after_mlp is not None:
            thought = self.after_mlp(thought)
        out: torch.Tensor = x + thought
        return out

    def slots(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        """Yields checkpoint names with the (slices of) parameters that they fill."""
        yield from self.attention.slots(f"{prefix}self_attn.")
        yield from self.mlp.slots(f"{prefix}mlp.")
        yield from self._own_norm_slots(prefix)

    def units(self, prefix: str, plan: LinearPlan, device: torch.device) -> Iterator[LoadUnit]:
        """How it is loaded to *device*: each matrix, and all norms together."""
        for linear in self.attention.linear_maps():
            yield linear.unit(f"{prefix}self_attn.", plan, device)
        for linear in self.mlp.linear_maps():
            yield linear.unit(f"{prefix}mlp.", plan, device)
        norms = [module for module in self.modules() if isinstance(module, RMSNorm | HeadNorm)]

        def slots() -> dict[str, WeightTarget]:
            of_heads = self.attention.norm_slots(f"{prefix}self_attn.")
            return dict([*of_heads, *self._own_norm_slots(prefix)])

        yield _norm_unit(norms, slots, device)

    def _own_norm_slots(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        for name, norm in self._norms().items():
            yield f"{prefix}{name}.weight", WeightTarget.whole(norm.weight)

    def _norms(self) -> dict[str, RMSNorm]:
        """The norms by their checkpoint names, in which "post_attention" has two meanings."""
        if self.after_attention is None or self.after_mlp is None:
            return {
                "input_layernorm": self.before_attention,
                "post_attention_layernorm": self.before_mlp,
            }
        return {
            "input_layernorm": self.before_attention,
            "post_attention_layernorm": self.after_attention,
            "pre_feedforward_layernorm": self.before_mlp,
            "post_feedforward_layernorm": self.after_mlp,
        }


def _norm_unit(
    norms: Sequence[RMSNorm | HeadNorm],
    slots: Callable[[], dict[str, WeightTarget]],
    device: torch.device,
) -> LoadUnit:
    def place_all() -> None:
        for norm in norms:
            place(norm, device)

    def finish() -> None:
        for norm in norms:
            norm.finish()

    return LoadUnit(place_all, slots, finish)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Decoder(nn.Module):
    """The whole model.

    It is created on the meta device, where it takes no memory; then its :meth:`units` are placed,
    read and finished, a few at a time, so that only those exist in two layouts.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        stored: torch.dtype,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        """Computes in *dtype* on *device*.

        *stored* is the checkpoint's dtype, in which the embedding (of which single rows are read)
        and the head, until it is packed, stay. Every rank of a *group* has such a model, with its
        share of each matrix.
        """
        super().__init__()
        self.config = config
        self.device = device
        self._stored = stored
        self.heads = group.share(config.heads).size
        """Number of this rank's query heads; *kv_heads* likewise."""
        self.kv_heads = group.heads(config.kv_heads).size
        with torch.device("meta"), _default_dtype(dtype):
            vocab, hidden = config.vocab_size, config.hidden_size
            self.layers = nn.ModuleList(
                DecoderLayer(config, i, group) for i in range(config.layers)
            )
            self.norm = _norm(config)
            with _default_dtype(stored):
                self.embedding = Embedding(vocab, hidden, dtype, group)
                share = self.embedding.share
                own = nn.Parameter(torch.empty(share.size, hidden), requires_grad=False)
            weight = self.embedding.weight if config.tied else own
            self.head = Head(weight, dtype, share, group)
        # Rounded to the weights' dtype, as in the training of these models.
        root = torch.tensor(hidden**0.5, dtype=dtype)
        self.embedding_scale = float(root) if config.traits.scaled_embedding else None
        # One or two sets of rotary parameters; each is turned into angles once per step.
        self._ropes = tuple(dict.fromkeys(config.ropes))
        self._rope_of = [self._ropes.index(rope) for rope in config.ropes]
        inverse = [frequencies(rope, config.head_dim) for rope in self._ropes]
        self.frequencies = nn.Buffer(torch.stack(inverse).to(device), persistent=False)
        self.eval()

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """Computes a step: maps *tokens*, *positions* ``[tokens]`` to the last layer's output.

        The output is ``[tokens, hidden]``.
        """
        x: torch.Tensor = self.embedding(tokens)
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        turns = [
            angles(inverse, positions, rope.attention_factor, x.dtype)
            for inverse, rope in zip(self.frequencies, self._ropes, strict=True)
        ]
        for layer, rope in zip(self.layers, self._rope_of, strict=True):
            x = layer(x, turns[rope], cache, step)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps outputs of the last layer ``[rows, hidden]`` to float32 logits ``[rows, vocab]``.

        Only rank 0 gets the complete logits.
        """
        logits: torch.Tensor = self.head(self.norm(hidden))
        cap = self.config.traits.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def linear_maps(self) -> Iterator[Linear]:
        """All linear maps except the head, in the order in which they are computed."""
        return (module for module in self.modules() if isinstance(module, Linear))

    def pad_to(self, rows: int) -> None:
        """From now on, linear maps pad smaller batches to *rows* rows."""
        for linear in self.linear_maps():
            linear.pad_to(rows)
        self.head.pad_to(rows)

    def slots(self) -> dict[str, WeightTarget]:
        """Maps checkpoint names, in ``canonical`` form, to the (slices of) parameters they fill."""
        slots = {EMBEDDING: self._rows(self.embedding.weight)}
        for prefix, layer in self._prefixed_layers():
            slots |= layer.slots(prefix)
        slots |= self._norm_slots()
        if not self.config.tied:
            slots[HEAD] = self._rows(self.head.weight)
        return slots

    def units(self, plan: LinearPlan) -> Iterator[LoadUnit]:
        """The parts in which the model is loaded, largest matrices first and last; each is in two
        layouts only while it is converted to that of *plan*."""
        if self.config.tied:
            yield from self._shared_matrix_units(plan)
        else:
            begin = functools.partial(place, self.embedding, self.device)
            yield LoadUnit(begin, lambda: {EMBEDDING: self._rows(self.embedding.weight)})
        for prefix, layer in self._prefixed_layers():
            yield from layer.units(prefix, plan, self.device)
        yield _norm_unit([self.norm], self._norm_slots, self.device)
        if not self.config.tied:
            yield from self.head.units(plan, HEAD, self._stored, self.device)

    def _shared_matrix_units(self, plan: LinearPlan) -> Iterator[LoadUnit]:
        """The embedding, whose rows are packed for the head as soon as they are read."""

        def begin() -> None:
            if self.embedding.weight.is_meta:
                place(self.embedding, self.device)
                self.head.weight = self.embedding.weight

        for index, rows in enumerate(self.head.prepare(plan)):

            def slots(rows: range = rows) -> dict[str, WeightTarget]:
                return {EMBEDDING: self._rows(self.embedding.weight, rows)}

            def finish(index: int = index, rows: range = rows) -> None:
                self.head.finish(index, self.embedding.weight[rows.start : rows.stop])

            yield LoadUnit(begin, slots, finish, self.head.converted_bytes(rows))

    def _prefixed_layers(self) -> Iterator[tuple[str, DecoderLayer]]:
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            yield f"layers.{index}.", layer

    def _norm_slots(self) -> dict[str, WeightTarget]:
        return {"norm.weight": WeightTarget.whole(self.norm.weight)}

    def _rows(self, weight: torch.Tensor, rows: range | None = None) -> WeightTarget:
        """The target for this rank's rows, or for those *rows* of them, of a matrix with one row
        per token id."""
        rows = range(len(weight)) if rows is None else rows
        whole = (self.config.vocab_size, self.config.hidden_size)
        begin = self.embedding.share.begin + rows.start
        return WeightTarget(weight[rows.start : rows.stop], whole, 0, begin)

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may contain tensor *name* although the model does not read it."""
        return self.config.ignores(name)
