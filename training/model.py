"""The demo model's shape, and its folder in the layout of a published Qwen3 model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from training.tokenizer import END, PAD, VOCABULARY_SIZE, token_id


@dataclass(frozen=True, slots=True)
class Shape:
    """A tiny Qwen3: every size divides by two, so that it also runs on two ranks."""

    vocab_size: int = VOCABULARY_SIZE
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True


def config_json(tokenizer: Tokenizer) -> dict[str, object]:
    """The content of config.json; the weights are stored as bfloat16."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **asdict(Shape()),
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, END),
        "pad_token_id": token_id(tokenizer, PAD),
        "torch_dtype": "bfloat16",
    }


def new_model(tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """An untrained model in float32, drawn with torch's global generator."""
    settings = config_json(tokenizer)
    del settings["torch_dtype"]
    return Qwen3ForCausalLM(Qwen3Config(**settings)).float()


def load_model(folder: Path, dtype: torch.dtype) -> Qwen3ForCausalLM:
    """A saved model, computing in the given type."""
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def save_model(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes weights, config and generation defaults; half the precision suffices to store."""
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        # The tied output layer is the embedding.
        if name != "lm_head.weight"
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write(folder / "config.json", config_json(tokenizer))
    ends = [token_id(tokenizer, END), token_id(tokenizer, PAD)]
    generation = {
        "do_sample": False,
        "temperature": 0.0,
        "eos_token_id": ends,
        "pad_token_id": ends[1],
    }
    _write(folder / "generation_config.json", generation)


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
