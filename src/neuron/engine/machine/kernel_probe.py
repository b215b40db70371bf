"""Decides how a model is computed on this machine, by trying kernels on the model's own shapes.

The fast kernels are private operators of torch, and how they round depends on the processor. So at
load each is run on random numbers first: does it compute what the plain kernel computes, and is a
row's result bit-identical whatever rows are beside it? A kernel that fails is not used, and a note
says so.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional

from neuron.layers.attention import AttentionRow, AttentionStep, ReferenceStep, Window, attend
from neuron.layers.cache import KVCache
from neuron.layers.linear import Kernel, LinearPlan, linear, pack
from neuron.layers.paging import BLOCK_TOKENS, TILE_TOKENS, blocks_for
from neuron.layers.tiles import TiledStep
from neuron.models.config import ModelConfig
from neuron.models.errors import LoadCode, LoadError

_BATCHES = (1, 2, 3, 4, 5, 7, 8, 16, 33, 64)
_ROWS = 80
"""Rows of the batch with which smaller batches are compared."""
_OUTPUTS = 2048
"""Most rows of a matrix that are tried; its inputs are always complete, as they are summed."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Tolerated error of a linear map, relative to its largest result."""
Samples = list[tuple[torch.Tensor, torch.Tensor]]
"""A random input and a random matrix for each shape of linear map."""
_CUTS = ([1] * 3 + [60, 1, 190, 1, 1, 17, 42], [300, 15], [256, 59])
"""Some ways to compute 315 tokens of a sequence in steps; more than one tile."""


@dataclass(frozen=True, slots=True)
class KernelPath:
    """The kernels that a model runs on."""

    linear: LinearPlan = field(default_factory=LinearPlan)
    reference: bool = True
    """Whether attention is plain torch on gathered pages."""
    exact: bool = False
    """Whether a row's logits are bit-identical in every batch."""
    notes: tuple[str, ...] = ()
    """What is not available on this machine, for the operator."""

    @property
    def is_packed(self) -> bool:
        """Whether matrices are kept in oneDNN's own layout."""
        return self.linear.kernel is Kernel.PACKED

    @property
    def name(self) -> str:
        """The path's part of the numerics class."""
        attention = "reference" if self.reference else "tiles"
        rows = f"-{self.linear.least_rows}" if self.linear.least_rows > 1 else ""
        return f"{self.linear.kernel}{rows} {attention} {'exact' if self.exact else 'inexact'}"

    def step(
        self,
        rows: list[AttentionRow],
        slots: torch.Tensor,
        windows: set[Window],
        dtype: torch.dtype,
        group: int,
    ) -> AttentionStep:
        """Makes the attention input of one step on this path."""
        if self.reference:
            return ReferenceStep(rows, slots, windows, dtype)
        return TiledStep(rows, slots, windows, dtype, group=group, exact=self.exact)


def choose_path(
    config: ModelConfig,
    shapes: list[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    exact: bool | None,
    reference: bool,
) -> KernelPath:
    """The best path that works here. *shapes* are (rows, inputs) of the model's linear maps.

    Raises :class:`LoadError` UNSUPPORTED if *exact* is True and no exact path works.
    """
    if reference or device.type != "cpu":
        path = KernelPath()
    else:
        path = _choose_on_cpu(config, shapes, dtype, exact=exact is not False)
    if exact and not path.exact:
        why = "; ".join(path.notes) or f"the {path.name} path on {device} is not exact"
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"The model cannot be computed exactly: {why}. Set exact to auto, or load the model on "
            "a CPU.",
        )
    return path


def _choose_on_cpu(
    config: ModelConfig, shapes: list[tuple[int, int]], dtype: torch.dtype, *, exact: bool
) -> KernelPath:
    notes = []
    samples = _samples(shapes, dtype)
    kernel = Kernel.PACKED if _works(Kernel.PACKED, samples, dtype) else Kernel.PLAIN
    if kernel is Kernel.PLAIN:
        name = str(dtype).removeprefix("torch.")
        notes.append(f"this CPU or torch version has no packed {name} kernels, so steps are slower")
    plan = LinearPlan(kernel)
    if exact:
        rows = next((rows for rows in (1, 2, 4) if _invariant(kernel, rows, samples)), None)
        if rows is not None:
            plan = LinearPlan(kernel, rows)
        else:
            notes.append(f"{kernel} linear maps round differently from batch to batch on this CPU")
        tiles = _attention_invariant(config, dtype)
        if not tiles:
            notes.append("the attention kernel rounds differently from batch to batch on this CPU")
        exact = rows is not None and tiles
    return KernelPath(plan, reference=False, exact=exact, notes=tuple(notes))


# -- linear maps ---------------------------------------------------------------------------------


def _samples(shapes: list[tuple[int, int]], dtype: torch.dtype) -> Samples:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for rows, inputs in shapes:
        x = torch.randn(_ROWS, inputs, generator=generator).to(dtype)
        weight = torch.rand(min(rows, _OUTPUTS), inputs, generator=generator).sub_(0.5)
        samples.append((x, weight.to(dtype)))
    return samples


def _works(kernel: Kernel, samples: Samples, dtype: torch.dtype) -> bool:
    """Whether *kernel* computes the same as ``functional.linear``."""
    for x, weight in samples:
        try:
            out = linear(x, _laid_out(weight, kernel), None, LinearPlan(kernel)).float()
        except (RuntimeError, AttributeError):  # no such operator, or not for this dtype
            return False
        expected = functional.linear(x.float(), weight.float())
        if (out - expected).abs().max() > _TOLERANCE[dtype] * expected.abs().max():
            return False
    return True


def _invariant(kernel: Kernel, least_rows: int, samples: Samples) -> bool:
    """Whether each row is bit-identical in every batch of at least *least_rows* rows."""
    plan = LinearPlan(kernel, least_rows)
    for x, weight in samples:
        laid_out = _laid_out(weight, kernel)
        whole = linear(x, laid_out, None, plan)
        for count in _BATCHES:
            for begin in (0, _ROWS - count):
                some = linear(x[begin : begin + count].clone(), laid_out, None, plan)
                if not torch.equal(some, whole[begin : begin + count]):
                    return False
    return True


def _laid_out(weight: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    return pack(weight) if kernel is Kernel.PACKED else weight


# -- attention -----------------------------------------------------------------------------------


def _attention_invariant(config: ModelConfig, dtype: torch.dtype) -> bool:
    """Whether tiled attention is bit-identical however a sequence is divided into steps."""
    tokens = sum(_CUTS[0])
    assert all(sum(cuts) == tokens > TILE_TOKENS for cuts in _CUTS)
    shape = (tokens, config.kv_heads, config.head_dim)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(tokens, config.heads, config.head_dim, generator=generator).to(dtype)
    for window in set(config.windows):
        whole = _attend(query, key, value, [tokens], window)
        if any(not torch.equal(_attend(query, key, value, c, window), whole) for c in _CUTS):
            return False
    return True


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: list[int], window: Window
) -> torch.Tensor:
    tokens, kv_heads, dim = key.shape
    blocks = list(range(blocks_for(tokens)))
    cache = KVCache(
        1, len(blocks), kv_heads, dim, dtype=key.dtype, device=torch.device("cpu")
    ).layer(0)
    outs, begin = [], 0
    for count in cuts:
        end = begin + count
        row = AttentionRow(0, count, begin, blocks[: -(-end // BLOCK_TOKENS)])
        slots = torch.arange(begin, end)
        group = query.shape[1] // kv_heads
        step = TiledStep([row], slots, {window}, key.dtype, group=group, exact=True)
        now = slice(begin, end)
        outs.append(attend(query[now], key[now], value[now], cache, step, window))
        begin = end
    return torch.cat(outs)
