"""Trains the demo model and, when it is no worse than the shipped one, replaces it.

Run through ``bin/train-demo``. Everything is written to a work folder first; ``--resume`` goes on
from the checkpoint that lies there, with a fresh warm-up and decay of the learning rate.
"""

import argparse
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from training import render
from training.batches import Batch, mixed_batches
from training.evaluate import Scores, evaluate_folder
from training.model import Shape, new_model, save_model
from training.tokenizer import save_tokenizer, train_tokenizer

WARM_UP = 0.03
"""Part of the run in which the learning rate rises."""
WEIGHT_DECAY = 0.05
_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
          "model.safetensors")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    minutes: float
    steps: int | None
    """Ends the run after this many steps instead of by the clock; makes it repeatable."""
    work: Path
    out: Path
    seed: int
    peak_rate: float
    copying: float
    """The first part of the run in which most batches are copying exercises."""
    resume: bool
    force: bool
    questions: int


class Progress:
    """How far the run is, by steps or by the clock, from 0 to 1."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._began = time.monotonic()
        self.step = 0

    @property
    def minutes(self) -> float:
        """Time since the start."""
        return (time.monotonic() - self._began) / 60

    @property
    def done(self) -> float:
        """The finished part."""
        if self._options.steps is not None:
            return self.step / self._options.steps
        return self.minutes / self._options.minutes

    @property
    def rate(self) -> float:
        """The learning rate: a short linear rise, then a cosine down to nothing."""
        if self.done < WARM_UP:
            return self._options.peak_rate * (self.done + 1e-3) / WARM_UP
        rest = min(1.0, (self.done - WARM_UP) / (1 - WARM_UP))
        return self._options.peak_rate * (1 + math.cos(math.pi * rest)) / 2


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Mean cross entropy over the tokens that are to be learned."""
    hidden = model.model(input_ids=batch.inputs, use_cache=False).last_hidden_state
    learned = batch.targets >= 0  # (examples, positions)
    # Logits only where they are needed: most tokens are prompt.
    return cross_entropy(model.lm_head(hidden[learned]), batch.targets[learned])


def new_optimizer(model: Qwen3ForCausalLM, options: Options) -> torch.optim.AdamW:
    """AdamW that decays matrices but not the norms' gains."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.peak_rate, betas=(0.9, 0.98), fused=True)


def train(
    model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, tokenizer: Tokenizer, options: Options
) -> Progress:
    """Runs until the steps or the minutes are used up."""
    # Another seed on resuming, so that the stream does not start over.
    seed = options.seed + (int(time.time()) if options.resume else 0)
    progress = Progress(options)
    stream = mixed_batches(tokenizer, seed, lambda: progress.done < options.copying)
    recent = 0.0
    while progress.done < 1:
        for group in optimizer.param_groups:
            group["lr"] = progress.rate
        loss = loss_of(model, next(stream))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        recent += (loss.item() - recent) / min(progress.step, 100)
        if progress.step % 100 == 0:
            print(f"step {progress.step}, minute {progress.minutes:.1f}: loss {recent:.4f}")
        if progress.step % 1000 == 0:
            save_checkpoint(model, optimizer, options)
    save_checkpoint(model, optimizer, options)
    return progress


def save_checkpoint(
    model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, options: Options
) -> None:
    """Writes what --resume needs."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, options.work / "checkpoint.pt")


def prepare(options: Options) -> tuple[Tokenizer, Qwen3ForCausalLM, torch.optim.AdamW]:
    """A fresh model with its tokenizer, or the ones that lie in the work folder."""
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    if options.resume:
        tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(options.seed)
        save_tokenizer(tokenizer, options.work, Shape().max_position_embeddings)
    model = new_model(tokenizer).train()
    optimizer = new_optimizer(model, options)
    if options.resume:
        state = torch.load(options.work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    return tokenizer, model, optimizer


def score(folder: Path, options: Options) -> dict[str, Scores]:
    """Scores in both precisions; the lower one is what a GPU computes in."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {
        name: evaluate_folder(folder, dtype, options.questions, seed=1)
        for name, dtype in types.items()
    }


def publish(options: Options) -> None:
    """Prints the scores, and copies the model to its place unless a better one is there."""
    new = score(options.work, options)
    for name, scores in new.items():
        print(f"\n{name}\n{scores.table()}")
    worst = min(scores.share() for scores in new.values())
    if (options.out / "model.safetensors").exists() and not options.force:
        old = min(scores.share() for scores in score(options.out, options).values())
        if old > worst:
            raise SystemExit(
                f"not replaced: the new model answers {worst:.2%}, the one in {options.out} "
                f"{old:.2%}. Train longer, go on with --resume, or replace it with --force."
            )
    options.out.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(options.work / name, options.out / name)
    print(f"\nwritten to {options.out}")


def parse_options() -> Options:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Train the bundled demo model.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="end after this many steps, not by the clock")
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--out", type=Path, default=render.MODEL_FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-rate", type=float, default=3e-3)
    parser.add_argument("--copying", type=float, default=0.2, help="part of the run, 0 to 1")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--resume", action="store_true", help="go on from the work folder")
    parser.add_argument("--force", action="store_true", help="replace better weights as well")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Trains, evaluates and publishes."""
    torch.set_num_threads(1)
    options = parse_options()
    tokenizer, model, optimizer = prepare(options)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size} parameters")
    progress = train(model, optimizer, tokenizer, options)
    print(f"{progress.step} steps in {progress.minutes:.1f} minutes")
    save_model(model, tokenizer, options.work)
    publish(options)


if __name__ == "__main__":
    main()
