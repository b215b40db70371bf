"""What a load decides from a config and the headers of a checkpoint; there are no weights here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron.engine.load_plan import LoadPlan, check_start, plan_load
from neuron.ipc.messages import Start
from neuron.layers.group import Group
from neuron.models.checkpoint import TensorEntry
from neuron.models.config import ModelConfig, parse_config
from neuron.models.decoder import Decoder
from neuron.models.errors import LoadCode, LoadError
from tests.support.tiny_models import FAMILIES, make_config, tensor_shapes

STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Entries = list[TensorEntry]


def headers(
    family: str = "qwen3", stored: str = "F32", **changes: Any
) -> tuple[ModelConfig, Entries]:
    """A config and the tensors that belong to it, one after the other in one file."""
    made = make_config(family, torch_dtype=STORED[stored], **changes)
    entries, begin = [], 8
    for name, shape in tensor_shapes(made).items():
        entries.append(TensorEntry(name, Path("x"), stored, tuple(shape), begin))
        begin += entries[-1].nbytes
    return parse_config(json.dumps(made).encode()), entries


def planned(
    start: Start | None = None, rank: int = 0, family: str = "qwen3", **changes: Any
) -> LoadPlan:
    return plan_load(start or Start("x"), *headers(family, **changes), rank)


def refused(plan: Callable[[], object]) -> tuple[LoadCode, str]:
    with pytest.raises(LoadError) as caught:
        plan()
    return caught.value.code, caught.value.message


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "least"),
    [
        ("max_running", 1),
        ("max_queued", 0),
        ("max_step_tokens", 1),
        ("max_context", 2),
        ("kv_cache_bytes", 1),
        ("threads", 1),
    ],
)
def test_a_setting_below_its_least_is_refused_by_name(setting: str, least: int) -> None:
    settings: dict[str, Any] = {setting: least}
    check_start(Start("x", **settings))
    settings[setting] -= 1
    code, message = refused(lambda: check_start(Start("x", **settings)))
    assert code is LoadCode.UNSUPPORTED
    assert message == (
        f"The engine cannot start with {setting} = {least - 1}: it must be at least {least}."
    )


def test_settings_that_are_left_open_are_fine() -> None:
    check_start(Start("x"))


def without(name: str) -> Callable[[Entries], Entries]:
    return lambda entries: [entry for entry in entries if entry.name != name]


def with_another(name: str) -> Callable[[Entries], Entries]:
    return lambda entries: [*entries, TensorEntry(name, Path("x"), "F32", (2, 2), 8)]


def transposed(entries: Entries) -> Entries:
    first, *rest = entries
    shape = first.shape[::-1]
    return [TensorEntry(first.name, first.file, first.dtype, shape, first.begin), *rest]


FIT = "The weights do not match config.json: "
CHECK = "Check that config.json belongs to these weights, or download the model again."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("model.norm.weight"),
            f"{FIT}the checkpoint lacks 1 tensor (norm.weight). {CHECK}",
        ),
        (lambda _: [], "the checkpoint lacks 35 tensors (embed_tokens.weight, layers.0."),
        (
            with_another("model.layers.3.mlp.up_proj.weight"),
            f"{FIT}the checkpoint has unexpected 1 tensor (layers.3.mlp.up_proj.weight). {CHECK}",
        ),
        (
            lambda entries: with_another("model.strange")(without("model.norm.weight")(entries)),
            "lacks 1 tensor (norm.weight) and has unexpected 1 tensor (strange).",
        ),
        (
            with_another("norm.weight"),
            "The checkpoint has one tensor twice, as 'model.norm.weight' and 'norm.weight'. "
            "Download the model again into an empty folder.",
        ),
        (
            transposed,
            f"{FIT}tensor 'model.embed_tokens.weight' has shape [64, 320] instead of [320, 64]. "
            f"{CHECK}",
        ),
    ],
)
def test_tensors_that_do_not_belong_are_refused(
    change: Callable[[Entries], Entries], message: str
) -> None:
    config, entries = headers()
    code, found = refused(lambda: plan_load(Start("x"), config, change(entries)))
    assert code is LoadCode.CORRUPT
    assert message in found


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_tensors_that_the_model_does_not_need_are_left_alone(name: str) -> None:
    config, entries = headers()
    plan = plan_load(Start("x"), config, with_another(name)(entries))
    assert set(plan.tensors.values()) == set(entries)


def test_dtypes_that_there_are_not_are_refused() -> None:
    code, message = refused(lambda: planned(Start("x", dtype="int4")))
    assert code is LoadCode.UNSUPPORTED
    assert message == ("dtype 'int4' is not supported. Use auto, float32, bfloat16 or float16.")


@pytest.mark.parametrize(
    ("ranks", "changes", "why"),
    [
        (3, {}, "it has 4 attention heads"),
        (
            6,
            {"num_attention_heads": 12, "num_key_value_heads": 4},
            "it has 4 key/value heads",
        ),
        (4, {"intermediate_size": 130}, "its MLP has 130 inner features"),
    ],
)
def test_ranks_that_a_model_cannot_be_spread_over_are_refused(
    ranks: int, changes: dict[str, Any], why: str
) -> None:
    start = Start("x", devices=("cpu",) * ranks)
    code, message = refused(lambda: planned(start, **changes))
    assert code is LoadCode.UNSUPPORTED
    assert f"{why}, which cannot be split over {ranks} devices. Set min_devices to " in message


def test_the_dtype_is_refused_before_the_ranks_and_the_ranks_before_the_tensors() -> None:
    config, _ = headers()
    spread = ("cpu",) * 3
    start = Start("x", dtype="int4", devices=spread)
    _, message = refused(lambda: plan_load(start, config, []))
    assert "int4" in message
    _, message = refused(lambda: plan_load(Start("x", devices=spread), config, []))
    assert "3 devices" in message


# -- what is planned -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "stored", "device", "has_bfloat16", "computed"),
    [
        ("auto", "F32", "cpu", True, "float32"),
        ("auto", "BF16", "cpu", True, "bfloat16"),
        ("auto", "BF16", "cpu", False, "float32"),
        ("auto", "F16", "cpu", True, "float32"),
        ("auto", "F16", "cuda:1", False, "float16"),
        ("auto", "BF16", "cuda", False, "bfloat16"),
        ("bfloat16", "F32", "cpu", False, "bfloat16"),
    ],
)
def test_dtypes(
    asked: str,
    stored: str,
    device: str,
    has_bfloat16: bool,
    computed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("neuron.hardware.dtypes.computes_bfloat16", lambda: has_bfloat16)
    start = Start("x", dtype=asked, device=device)
    plan = planned(start, stored=stored)
    assert (plan.dtypes.computed, plan.dtypes.stored) == (computed, STORED[stored])


def test_the_dtype_of_the_config_is_computed_and_that_of_the_files_kept() -> None:
    config, _ = headers(stored="F32")
    _, entries = headers(stored="BF16")
    plan = plan_load(Start("x", device="cuda"), config, entries)
    assert (plan.dtypes.computed, plan.dtypes.stored) == ("float32", "bfloat16")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_and_bounds_are_those_of_a_decoder(family: str, tied: bool, ranks: int) -> None:
    """The decoder is only asked how large it is; it has no memory."""
    config, entries = headers(
        family, "BF16", tie_word_embeddings=tied, num_attention_heads=4, num_key_value_heads=2
    )
    start = Start("x", dtype="float32", devices=("cpu",) * ranks)
    cpu, whole, half = torch.device("cpu"), torch.float32, torch.bfloat16
    for rank in range(ranks):
        plan, group = plan_load(start, config, entries, rank), Group(rank, ranks)
        model = Decoder(config, whole, whole, cpu, group)
        assert plan.weights.plain == sum(each.nbytes for each in model.parameters())
        model = Decoder(config, whole, half, cpu, group)
        head = model.head.weight  # packed, it is of its own, and in the dtype to compute in
        packed = sum(each.nbytes for each in model.parameters()) + head.numel() * 4
        assert plan.weights.packed == packed - (0 if tied else head.nbytes)
        assert plan.cache.kv_heads == model.kv_heads
        layers = sum(each.numel() for each in model.layers.parameters())
        context = 2 * config.layers * model.heads * config.head_dim
        assert plan.limits.context_weight == context / layers


def test_each_rank_reads_from_the_same_places() -> None:
    start = Start("x", devices=("cpu", "cpu"))
    config, entries = headers()
    one, other = (plan_load(start, config, entries, rank) for rank in (0, 1))
    assert one.tensors == other.tensors
    assert [entry.name.removeprefix("model.") for entry in one.tensors.values()] == [*one.tensors]
    assert (one.place.rank, other.place.rank) == (0, 1)
    assert (one.weights, one.limits, one.cache) == (other.weights, other.limits, other.cache)


@pytest.mark.parametrize(
    ("device", "ranks", "kind", "sharing"),
    [("cpu", 1, "cpu", 1), ("cpu", 2, "cpu", 2), ("cuda:1", 2, "cuda", 1), ("cuda", 1, "cuda", 1)],
)
def test_ranks_on_a_cpu_share_one_memory(device: str, ranks: int, kind: str, sharing: int) -> None:
    devices = (device,) * ranks if ranks > 1 else ()
    place = planned(Start("x", device=device, devices=devices)).place
    assert (place.kind, place.ranks, place.sharing) == (kind, ranks, sharing)
    assert (place.device, place.devices) == (device, devices)


@pytest.mark.parametrize(
    ("threads", "ranks", "each"), [(None, 1, None), (6, 1, 6), (6, 2, 3), (3, 2, 1), (1, 4, 1)]
)
def test_threads_are_divided_over_the_ranks(
    threads: int | None, ranks: int, each: int | None
) -> None:
    kernels = planned(Start("x", threads=threads, devices=("cpu",) * ranks)).kernels
    assert kernels.threads == each


@pytest.mark.parametrize("exact", [None, True, False])
@pytest.mark.parametrize("reference", [True, False])
def test_wishes_for_kernels_are_kept(exact: bool | None, reference: bool) -> None:
    kernels = planned(Start("x", exact=exact, reference=reference)).kernels
    assert (kernels.exact, kernels.reference) == (exact, reference)
    assert kernels.linear_shapes == ((64, 128), (256, 64))


@pytest.mark.parametrize(
    ("max_context", "limit"), [(None, 4096), (100, 100), (4096, 4096), (9999, 4096)]
)
def test_the_context_is_the_shorter_one(max_context: int | None, limit: int) -> None:
    cache = planned(Start("x", max_context=max_context, kv_cache_bytes=5)).cache
    assert (cache.context_limit, cache.asked_bytes) == (limit, 5)
    assert cache.bytes_per_token == 2 * 3 * 2 * 32 * 4


def test_ranks_have_their_part_of_a_tokens_cache() -> None:
    for ranks, heads in ((1, 2), (2, 1), (4, 1)):
        cache = planned(Start("x", devices=("cpu",) * ranks), dtype="float32").cache
        assert (cache.kv_heads, cache.bytes_per_token) == (heads, 2 * 3 * heads * 32 * 4)


@pytest.mark.parametrize(
    ("device", "settings", "step", "chunk"),
    [
        ("cpu", {}, 256, 64),
        ("cuda:0", {}, 4096, 1024),
        ("cpu", {"max_step_tokens": 32}, 32, 32),
        ("cpu", {"max_step_tokens": 32, "max_running": 40}, 40, 40),
        ("cpu", {"max_running": 100}, 256, 100),
    ],
)
def test_bounds_of_a_step(device: str, settings: dict[str, Any], step: int, chunk: int) -> None:
    limits = planned(Start("x", device=device, max_queued=7, **settings)).limits
    assert (limits.max_step_tokens, limits.prefill_chunk_tokens) == (step, chunk)
    assert (limits.max_running, limits.max_queued) == (settings.get("max_running", 8), 7)


def test_a_plan_needs_no_torch() -> None:
    code = "import sys, neuron.engine.load_plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
