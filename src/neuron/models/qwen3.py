"""Qwen3, dense (arXiv 2505.09388): grouped-query attention with normalised queries and keys.

One flat batch of tokens from any mix of sequences; what belongs to whom is the attention input's
business. The reference for the numerics is transformers' ``Qwen3ForCausalLM``.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from neuron.layers.attention import AttentionInput, KVCache, attend
from neuron.layers.embedding import Embedding
from neuron.layers.linear import Linear
from neuron.layers.norm import HeadNorm, RMSNorm
from neuron.layers.rotary import angles, frequencies, rotate
from neuron.models.config import ModelConfig


class Qwen3Attention(nn.Module):
    """Fused q, k, v projection; norm and rotation of q and k; paged attention; output."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.window = config.windows[layer]
        self.heads, self.kv_heads, self.dim = config.heads, config.kv_heads, config.head_dim
        q, kv, bias = self.heads * self.dim, self.kv_heads * self.dim, config.attention_bias
        parts = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        self.qkv = Linear(config.hidden_size, parts, bias=bias)
        self.output = Linear(q, {"o_proj": config.hidden_size}, bias=bias)
        self.norm = HeadNorm(self.heads, self.kv_heads, self.dim, config.norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        step: AttentionInput,
    ) -> torch.Tensor:
        qkv = self.qkv(x).view(len(x), -1, self.dim)  # (tokens, heads + 2 kv_heads, dim)
        both = self.heads + self.kv_heads
        qk = rotate(self.norm(qkv[:, :both]), *turn)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, both:]
        out = attend(q, k, v, cache.layer(self.layer), step, self.window)
        attended: torch.Tensor = self.output(out.reshape(len(x), -1))
        return attended

    def slots(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.qkv.slots(prefix).items()
        yield from self.output.slots(prefix).items()
        yield f"{prefix}q_norm.weight", self.norm.query
        yield f"{prefix}k_norm.weight", self.norm.key


class Qwen3Layer(nn.Module):
    """Attention and the gated MLP, each on a normalised copy added back to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Qwen3Attention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.gate_up = Linear(config.hidden_size, {"gate_proj": inner, "up_proj": inner})
        self.down = Linear(inner, {"down_proj": config.hidden_size})

    def forward(
        self,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        step: AttentionInput,
    ) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), turn, cache, step)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)  # (tokens, inner) each
        out: torch.Tensor = x + self.down(functional.silu(gate) * up)
        return out

    def slots(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{prefix}input_layernorm.weight", self.attention_norm.weight
        yield from self.attention.slots(f"{prefix}self_attn.")
        yield f"{prefix}post_attention_layernorm.weight", self.mlp_norm.weight
        yield from self.gate_up.slots(f"{prefix}mlp.").items()
        yield from self.down.slots(f"{prefix}mlp.").items()


class Qwen3(nn.Module):
    """The whole model. Parameters are uninitialised until ``weights.load_weights`` fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Qwen3Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = (
            self.embedding if config.tied else Embedding(config.vocab_size, config.hidden_size)
        )
        inverse = frequencies(config.rope, config.head_dim).to(self.embedding.weight.device)
        self.frequencies = nn.Buffer(inverse, persistent=False)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        step: AttentionInput,
        sampled: torch.Tensor,
    ) -> torch.Tensor:
        """Computes a step: *tokens*, *positions* ``[tokens]`` → logits ``[rows, vocab]``.

        *sampled* ``[rows]`` are the indices of the tokens whose logits are needed.
        """
        x = self.embedding(tokens)  # (tokens, hidden)
        scale = self.config.rope.attention_factor
        turn = angles(self.frequencies, positions, scale, x.dtype)
        for layer in self.layers:
            x = layer(x, turn, cache, step)
        return self.head.logits(self.norm(x[sampled]))

    def slots(self) -> dict[str, torch.Tensor]:
        """Checkpoint name, without ``model.`` → the (slice of a) parameter that it fills."""
        slots: dict[str, torch.Tensor] = {
            "embed_tokens.weight": self.embedding.weight,
            "norm.weight": self.norm.weight,
        }
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Qwen3Layer)
            slots.update(layer.slots(f"layers.{index}."))
        if not self.config.tied:
            slots["lm_head.weight"] = self.head.weight
        return slots

    def finish(self) -> None:
        """Brings the loaded parameters into the form that the forward pass uses."""
        for module in self.modules():
            if isinstance(module, HeadNorm):
                module.finish()

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold tensor *name* although the model does not read it."""
        tied_head = self.config.tied and name == "lm_head.weight"
        return tied_head or name.endswith("rotary_emb.inv_freq")
