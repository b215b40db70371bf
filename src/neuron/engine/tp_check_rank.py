"""``python -m neuron.engine.tp_check_rank``: one rank of ``neuron tp-check``.

Rank 0 writes the report to stdout: whether the ranks connect, whether their sums are right, how
long a sum takes by size, and whether the demo model computes the same over all ranks as on one.
"""

import argparse
import os
import signal
import socket
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from neuron import demo_model
from neuron.engine.forward import Forward
from neuron.engine.loader import fill_model
from neuron.engine.machine.device import open_device
from neuron.engine.machine.kernel_probe import KernelPath
from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.engine.ranks.rendezvous import follow, lead
from neuron.ipc.rank_commands import UNTRIED, Compute, SequenceTokens
from neuron.layers.cache import KVCache
from neuron.layers.group import ALONE, SUMMED, AllReduce, Group
from neuron.layers.linear import LinearPlan
from neuron.models.checkpoint import read_checkpoint
from neuron.models.config import load_config
from neuron.models.decoder import Decoder
from neuron.models.errors import LoadError
from neuron.models.sharding import possible_ranks
from protocol.runtime.die_with_parent import die_with_parent

OK, WRONG, NO_DEVICE = 0, 3, 4
SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20)
"""In bytes: a decode row of a small model and of a large one, a batch, a prefill."""
REPEATS = 30
TOLERANCE = 1e-4
_PROMPT = list(range(5, 45))


def main() -> int:
    """Runs one rank and returns the exit status."""
    parser = argparse.ArgumentParser(prog="neuron.engine.tp_check_rank", description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--lines", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(os.getppid())
    torch.set_num_threads(1)
    lines = [socket.socket(fileno=line) for line in arguments.lines]
    try:
        device = open_device(arguments.device)
    except LoadError as error:
        sys.stderr.write(f"{error.message}\n")
        return NO_DEVICE
    began = time.monotonic()
    if arguments.rank:
        group = follow(FollowerEnd(lines[0]), arguments.rank, device)
    else:
        group = lead(RankBroadcast(lines), device)
    group.least(0)
    report = _Report(is_silent=arguments.rank > 0)
    backend = distributed.get_backend()
    report.line(
        f"{group.size} ranks connected after {time.monotonic() - began:.1f} s, over {backend}"
    )
    is_right = _sums_are_right(group, device, report)
    _costs(group, device, report)
    if not is_right:
        return WRONG
    folder = Path(next(iter(demo_model.__path__)))
    possible = possible_ranks(load_config(folder))
    if group.size not in possible:
        numbers = ", ".join(map(str, possible))
        report.line(f"the demo model was not tried: it can be split over {numbers} ranks only")
        return UNTRIED
    return OK if _model_is_right(folder, group, device, report) else WRONG


class _Report:
    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent = is_silent

    def line(self, text: str) -> None:
        """Writes one line and flushes it."""
        if not self._is_silent:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


def _sums_are_right(group: Group, device: torch.device, report: _Report) -> bool:
    """Checks sums in every dtype, with numbers below 256, which all of them represent exactly."""
    wrong = []
    for dtype in SUMMED:
        x = torch.arange(1024, device=device).remainder(8).to(dtype) + group.rank
        expected = group.size * torch.arange(1024).remainder(8) + sum(range(group.size))
        if not torch.equal(AllReduce(group)(x).cpu(), expected.to(dtype)):
            wrong.append(str(dtype).removeprefix("torch."))
    is_right = group.least(not wrong) == 1
    report.line("sums are right" if is_right else f"WRONG sums: {', '.join(wrong) or 'elsewhere'}")
    return is_right


def _costs(group: Group, device: torch.device, report: _Report) -> None:
    report.line(f"{'size':>10}  {'median':>10}  {'bandwidth':>10}")
    for size in SIZES:
        x = torch.zeros(size // 2, dtype=torch.bfloat16, device=device)
        seconds = []
        for _ in range(REPEATS):
            distributed.barrier()
            began = time.perf_counter()
            distributed.all_reduce(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        rate = size / median / 1e9
        report.line(f"{size >> 10:>6} KiB  {median * 1e6:>7.0f} µs  {rate:>5.2f} GB/s")


def _model_is_right(folder: Path, group: Group, device: torch.device, report: _Report) -> bool:
    found = _logits(folder, device, group)
    if group.rank:
        return True
    expected = _logits(folder, device, ALONE)
    error = float((found - expected).abs().max() / expected.abs().max())
    is_same = torch.equal(found.argmax(-1), expected.argmax(-1))
    is_right = error <= TOLERANCE and is_same
    verdict = "the same as on one rank" if is_right else "WRONG"
    report.line(f"the demo model's logits: {verdict} (largest difference {error:.1e})")
    return is_right


def _logits(folder: Path, device: torch.device, group: Group) -> torch.Tensor:
    config = load_config(folder)
    model = Decoder(config, torch.float32, torch.float32, device, group)
    fill_model(model, read_checkpoint(folder).values(), LinearPlan())
    blocks = list(range(4))
    cache = KVCache(
        config.layers,
        len(blocks),
        model.kv_heads,
        config.head_dim,
        dtype=torch.float32,
        device=device,
    )
    forward = Forward(model, cache, KernelPath())
    with torch.inference_mode():
        forward.compute(Compute(1, [SequenceTokens(0, _PROMPT, 0, blocks)]))
        return forward.logits(list(range(len(_PROMPT))))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
