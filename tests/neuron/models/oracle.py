"""transformers' model of a checkpoint, which ours is compared with."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers

TOLERANCE = 1e-5
"""Of float32 logits, relative to the largest."""


class Oracle:
    """The transformers class that config.json names, with its plainest attention."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        kind: Any = getattr(transformers, name)
        self.model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Float32 logits ``[tokens, vocab]``."""
        logits: torch.Tensor = self.model(torch.tensor([tokens])).logits[0].float()
        return logits

    def generate(self, tokens: list[int], count: int) -> list[int]:
        """The *count* tokens that greedily follow."""
        answer = self.model.generate(
            torch.tensor([tokens]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        made: list[int] = answer[0, len(tokens) :].tolist()
        return made


def prompt(count: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    rng = random.Random(seed)
    return [rng.randrange(320) for _ in range(count)]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
