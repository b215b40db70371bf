"""The estimate before a load: its arithmetic, and that it is the engine's."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.memory import SHAPES, empty_engine, measure, write
from neuron.engine.load_plan import plan_load
from neuron.engine.machine import kernel_probe
from neuron.engine.machine.memory import kv_budget
from neuron.hardware import dtypes
from neuron.hardware.host import shared_out_bytes, written_bytes
from neuron.ipc.messages import Start
from neuron.layers.linear import Kernel
from neuron.models.checkpoint import TensorEntry
from neuron.models.config import ModelConfig, parse_config
from neuron.models.errors import LoadError
from neuron.models.parameters import linear_shapes
from neuron.sizing.estimate import (
    KERNEL_BYTES,
    LIBRARY_BYTES,
    PROCESS_BYTES,
    EstimateSettings,
    MemoryEstimate,
    beside_kv,
    estimate,
)
from protocol.fleet import DeviceKind
from protocol.runtime.sizes import size_text
from tests.support.tiny_models import FAMILIES, make_config, tensor_shapes

CPU, CUDA = DeviceKind.CPU, DeviceKind.CUDA
MIB = 1 << 20
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def model(
    family: str = "qwen3", stored: str = "BF16", *, more: tuple[str, ...] = (), **changes: Any
) -> tuple[ModelConfig, list[TensorEntry]]:
    """A config and the tensors that belong to it; *more* are copies of the first one."""
    made = make_config(family, torch_dtype=NAMES[stored], **changes)
    shapes = tensor_shapes(made)
    shapes |= dict.fromkeys(more, next(iter(shapes.values())))
    entries = [TensorEntry(n, Path("x"), stored, tuple(s), 0) for n, s in shapes.items()]
    return parse_config(json.dumps(made).encode()), entries


def found(settings: EstimateSettings, *, family: str = "qwen3", **more: Any) -> MemoryEstimate:
    """The estimate of :func:`model` with MLPs of 192."""
    options = {name: more.pop(name) for name in ("available", "measured_bytes") if name in more}
    return estimate(*model(family, **{"intermediate_size": 192, **more}), settings, **options)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU packs whatever it is given, and has no bfloat16 of its own."""
    monkeypatch.setattr("neuron.hardware.dtypes.packs", lambda _: True)
    monkeypatch.setattr("neuron.hardware.host.cpu_flags", list)


# Embedding 320 × 64; each of three layers: q, o of 64 × 128, k, v of 64 × 64, head norms of 32, an
# MLP of 3 × 64 × 192, norms of 64; the last norm.
TABLE, OTHERS = 20_480, 3 * (4 * 8192 - 8192 + 64 + 36_864 + 128) + 64
TOKEN = 2 * 3 * 2 * 32
"""Numbers of KV cache for a token."""


@pytest.mark.usefixtures("packs")
def test_weights_with_packed_matrices() -> None:
    tied = found(EstimateSettings(CPU, 8))
    assert tied.weight_bytes == 4 * OTHERS + 2 * TABLE + 4 * TABLE
    untied = found(EstimateSettings(CPU, 8), tie_word_embeddings=False)
    assert untied.weight_bytes == tied.weight_bytes
    wide = found(EstimateSettings(CPU, 8), stored="F32")
    assert wide.weight_bytes == 4 * OTHERS + 4 * TABLE + 4 * TABLE
    narrow = found(EstimateSettings(CPU, 8, dtype="bfloat16"), stored="F32")
    assert narrow.weight_bytes == 2 * OTHERS + 4 * TABLE + 2 * TABLE


def test_weights_with_plain_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron.hardware.dtypes.packs", lambda _: False)
    for kind in (CPU, CUDA):
        asked = EstimateSettings(kind, 8, dtype="bfloat16")
        assert found(asked).weight_bytes == 2 * (OTHERS + TABLE)
        assert found(asked, tie_word_embeddings=False).weight_bytes == 2 * (OTHERS + 2 * TABLE)


def test_what_is_not_read_takes_nothing() -> None:
    plain = found(EstimateSettings(CUDA, 8))
    more = ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert found(EstimateSettings(CUDA, 8), more=more).weight_bytes == plain.weight_bytes
    text = found(EstimateSettings(CUDA, 8), family="gemma3")
    whole = found(EstimateSettings(CUDA, 8), family="gemma3-vision")
    assert whole.weight_bytes == text.weight_bytes
    assert "are not loaded" in whole.lines()[0]


@pytest.mark.parametrize("kernel", Kernel)
@pytest.mark.parametrize("stored", ["F32", "BF16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma3-vision"])
def test_weights_are_what_the_engine_says(
    family: str,
    tied: bool,
    dtype: str,
    stored: str,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("neuron.hardware.dtypes.packs", lambda _: kernel is Kernel.PACKED)
    config, entries = model(family, stored, tie_word_embeddings=tied, attention_bias=True)
    plan = plan_load(Start("x", dtype=dtype), config, entries)
    mine = estimate(config, entries, EstimateSettings(CPU, 8, dtype=dtype))
    assert mine.weight_bytes == plan.weights.resident(packed=kernel is Kernel.PACKED)


@pytest.mark.parametrize("dtype", dtypes.ITEM_BYTES)
def test_kernels_are_those_that_the_engine_finds_here(dtype: str) -> None:
    config, _ = model()
    computed = getattr(torch, dtype)
    path = kernel_probe.choose_path(
        config, linear_shapes(config), computed, torch.device("cpu"), exact=None, reference=False
    )
    assert dtypes.packs(dtype) == path.is_packed


@pytest.mark.parametrize("kind", DeviceKind)
@pytest.mark.parametrize("stored", NAMES)
@pytest.mark.parametrize("asked", ["auto", *dtypes.ITEM_BYTES])
def test_dtypes_are_those_that_the_engine_chooses_here(
    asked: str, stored: str, kind: DeviceKind
) -> None:
    start = Start("x", device=kind, dtype=asked)
    mine = plan_load(start, *model(stored=stored)).dtypes.computed
    line = found(EstimateSettings(kind, 8, dtype=asked), stored=stored).lines()[0]
    assert f"parameters in {mine}" in line


@pytest.mark.parametrize(
    ("flags", "dtype", "packed"),
    [
        ([], "float32", True),
        (["avx2"], "bfloat16", False),
        (["avx512bw", "avx512vl"], "bfloat16", False),
        (["avx512bw", "avx512vl", "avx512dq"], "bfloat16", True),
        (["avx512bw", "avx512vl", "avx512dq"], "float16", False),
        (["avx512_fp16"], "float16", True),
        (["avx_ne_convert"], "float16", True),
    ],
)
def test_what_other_processors_pack(
    flags: list[str], dtype: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuron.hardware.dtypes.cpu_flags", lambda: flags)
    assert dtypes.packs(dtype) is packed


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(LoadError, match="'int4' is not supported"):
        found(EstimateSettings(CPU, 8, dtype="int4"))


# -- KV cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "context", "limit", "tokens", "why"),
    [
        (8, 4096, None, 32_768, "8 slots × the full context of 4,096"),
        (8, 4096, 1000, 8_000, "8 slots × the full context of 1,000"),
        (1, 100, None, 112, "1 slots × the full context of 100"),
        (4, 40_960, None, 32_768, "one long context"),
        (16, 40_960, None, 65_536, "16 slots × 4,096"),
        (2, 40_960, 8192, 8192, "2 slots × 4,096"),
        (2, 40_960, 50_000, 32_768, "one long context"),
    ],
)
def test_tokens_of_the_cache(
    slots: int, context: int, limit: int | None, tokens: int, why: str
) -> None:
    mine = found(EstimateSettings(CUDA, slots, max_context=limit), max_position_embeddings=context)
    assert (mine.kv_tokens, mine.kv_bytes) == (tokens, tokens * TOKEN * 2)
    assert mine.lines()[1].endswith(f"{tokens:,} tokens of 768 bytes: {why}")


@pytest.mark.usefixtures("packs")
def test_the_cache_has_numbers_of_the_dtype() -> None:
    assert found(EstimateSettings(CPU, 8)).kv_bytes == 32_768 * TOKEN * 4


def test_a_cache_as_asked_for_is_not_more_than_is_of_use_and_does_not_shrink() -> None:
    block = 16 * TOKEN * 2
    mine = found(EstimateSettings(CUDA, 8, kv_bytes=100 * block + 5), available=0)
    assert (mine.kv_bytes, mine.least_bytes) == (100 * block, mine.total_bytes)
    assert mine.lines()[1].endswith("as configured")
    assert found(EstimateSettings(CUDA, 8, kv_bytes=1 << 40)).kv_tokens == 8 * 4096


def test_the_cache_shrinks_to_what_there_is_room_for() -> None:
    settings = EstimateSettings(CUDA, 8)
    whole = found(settings)
    block = 16 * TOKEN * 2
    assert found(settings, available=whole.total_bytes) == whole
    less = found(settings, available=whole.total_bytes - 1)
    assert less.total_bytes == whole.total_bytes - block
    assert less.least_bytes == whole.least_bytes
    assert less.lines()[1].endswith("all that fits, of 32,768 wanted")
    assert whole.least_bytes == whole.total_bytes - whole.kv_bytes + 4096 * TOKEN * 2
    for available in (whole.least_bytes, whole.least_bytes - 1, 0):
        least = found(settings, available=available)
        assert (least.kv_tokens, least.total_bytes) == (4096, whole.least_bytes)


def test_a_short_context_needs_no_more_than_itself() -> None:
    least = found(EstimateSettings(CUDA, 8, max_context=100), available=0)
    assert least.kv_tokens == 112


def test_the_engine_makes_the_cache_as_it_was_estimated() -> None:
    for settings in (EstimateSettings(CPU, 3), EstimateSettings(CPU, 3, max_context=1001)):
        config, _ = model()
        mine = found(settings, stored="F32")
        budget = kv_budget(
            free=1 << 40,
            bytes_per_token=config.kv_bytes_per_token(4),
            context_limit=settings.max_context or config.context_limit,
            max_running=settings.slots,
            asked_bytes=mine.kv_bytes,
            share=0.5,
        )
        assert budget.blocks * 16 == mine.kv_tokens


# -- the rest --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("packs")
def test_overhead_of_an_engine_on_a_cpu() -> None:
    kernels = 64 * KERNEL_BYTES + LIBRARY_BYTES
    attention = 256 * (4 * 192 + 3 * 64) * 4 + 8 * 256 * 128 * 16
    working = attention + 8 * 320 * 4 * 5 + 15 * 16 * 64 * 4
    mine = found(EstimateSettings(CPU, 8))
    assert mine.overhead_bytes == kernels + working + PROCESS_BYTES[CPU]
    short = found(EstimateSettings(CPU, 8, max_context=300))
    assert mine.overhead_bytes - short.overhead_bytes == 6 * 256 * 128 * 16
    wide = found(EstimateSettings(CPU, 8), intermediate_size=16_384)
    mlp = 256 * (4 * 16_384 + 3 * 64) * 4
    assert wide.overhead_bytes - mine.overhead_bytes == mlp - attention
    many = found(EstimateSettings(CPU, 300))
    more = (300 - 256) * attention // 256 + (300 - 8) * 320 * 4 * 5
    assert many.overhead_bytes - mine.overhead_bytes == more


def test_overhead_of_an_engine_without_packed_matrices() -> None:
    mine = found(EstimateSettings(CUDA, 8))
    working = 4096 * (4 * 192 + 3 * 64) * 2 + 8 * 320 * 4 * 5
    assert mine.overhead_bytes == working + PROCESS_BYTES[CUDA]
    assert [line.split()[0] for line in mine.lines()] == ["weights", "KV", "working", "process"]


@pytest.mark.usefixtures("packs")
def test_ranks_share_matrices_and_heads_but_not_norms() -> None:
    norms = 3 * (64 + 128) + 64
    for ranks, kv_share in ((2, 2), (4, 2)):  # four ranks have one of two heads each
        one, each = found(EstimateSettings(CUDA, 8)), found(EstimateSettings(CUDA, 8, ranks=ranks))
        heads = 3 * 2 * 4096
        matrices = OTHERS - norms - heads + TABLE
        assert each.weight_bytes == 2 * (matrices // ranks + heads // kv_share + norms)
        assert each.kv_bytes == one.kv_bytes // kv_share
        assert f"each of {ranks} ranks" in each.lines()[0]


def test_a_line_for_each_term_and_they_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron.hardware.dtypes.packs", lambda _: True)
    monkeypatch.setattr("neuron.hardware.host.cpu_flags", list)
    mine = estimate(
        *model("qwen3", hidden_size=1024, num_hidden_layers=28, vocab_size=151_936),
        EstimateSettings(CPU, 4),
    )
    assert sum(term.size for term in mine.terms) == mine.total_bytes
    assert mine.total_bytes == mine.weight_bytes + mine.kv_bytes + mine.overhead_bytes
    assert [term.what for term in mine.terms] == [
        "weights",
        "KV cache",
        "kernels",
        "working memory",
        "process",
    ]
    assert mine.lines()[0] == (
        "weights 974.5 MiB: 178 M parameters in float32, of which 156 M stay as stored, in "
        "bfloat16; 156 M again, packed, for the head"
    )
    assert mine.lines()[1].startswith("KV cache 224 MiB: 16,384 tokens of 14 KiB: 4 slots × ")


def test_what_an_earlier_load_took_replaces_all_but_the_cache() -> None:
    settings = EstimateSettings(CUDA, 8)
    computed = found(settings)
    measured = beside_kv(computed.total_bytes + 5 * MIB, computed.kv_bytes)
    mine = found(settings, measured_bytes=measured)
    assert mine.total_bytes == computed.total_bytes + 5 * MIB
    assert mine.least_bytes == computed.least_bytes + 5 * MIB
    assert (mine.weight_bytes, mine.kv_bytes) == (computed.weight_bytes, computed.kv_bytes)
    assert mine.lines()[0].endswith("measured when it was last loaded")
    tight = found(settings, measured_bytes=measured, available=computed.total_bytes)
    assert tight.total_bytes <= computed.total_bytes
    assert found(settings, measured_bytes=100).weight_bytes == 100
    assert beside_kv(5, 10) == 0


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (5, 1536, 3 << 20, 5 << 29)] == [
        "5 bytes",
        "1.5 KiB",
        "3 MiB",
        "2.5 GiB",
    ]


# -- what a process has ----------------------------------------------------------------------------


ROLLUP = """\
55f8b3bf8000-7ffe741cf000 ---p 00000000 00:00 0    [rollup]
Rss:            9000 kB
Pss_Anon:        190 kB
Shared_Clean:   4000 kB
Shared_Dirty:    180 kB
Private_Clean:   900 kB
Private_Dirty:   100 kB
Swap:             20 kB
SwapPss:          20 kB
"""


def test_what_was_written_counts_also_where_it_is_shared(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").write_text(ROLLUP)
    assert written_bytes(7, tmp_path) == 300 << 10
    assert shared_out_bytes(7, tmp_path) == 210 << 10
    assert written_bytes(8, tmp_path) == written_bytes(0, tmp_path) == 0
    without = "".join(line + "\n" for line in ROLLUP.splitlines() if "Pss" not in line)
    (tmp_path / "7" / "smaps_rollup").write_text(without)
    assert shared_out_bytes(7, tmp_path) == 300 << 10


FORKING = """
import os, signal, time
from neuron.hardware.host import shared_out_bytes, written_bytes
block = bytearray(os.urandom(1)) * (64 << 20)
child = os.fork()
if not child:
    time.sleep(30)
    os._exit(0)
print(written_bytes(child) >> 20, shared_out_bytes(child) >> 20)
os.kill(child, signal.SIGKILL)
"""


def test_what_forked_processes_share_is_shared_out() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, check=True)
    written, shared_out = map(int, done.stdout.split())
    assert written > 64
    assert shared_out < 0.7 * written


def test_memory_of_this_process_grows_with_it() -> None:
    before = written_bytes(os.getpid())
    with mmap.mmap(-1, 64 * MIB) as block:  # the allocator may have as much at hand
        block[::4096] = bytes([1]) * (len(block) // 4096)
        assert written_bytes(os.getpid()) - before == pytest.approx(64 * MIB, abs=4 * MIB)


@pytest.mark.slow
async def test_a_real_load_takes_what_was_estimated(tmp_path: Path) -> None:
    write(tmp_path, SHAPES[0])
    empty = await empty_engine()
    assert abs(empty - PROCESS_BYTES[CPU]) < 24 * MIB
    taken = await measure(tmp_path, empty)
    assert abs(taken.predicted_bytes - taken.real_bytes) <= taken.bound_bytes, taken
