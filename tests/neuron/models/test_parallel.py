"""A model over several ranks computes what it computes on one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import distributed

from neuron.engine.load_plan import plan_load
from neuron.engine.loader import _make_cache, fill_model
from neuron.ipc.messages import Start
from neuron.layers.group import ALONE, SUMMED, AllReduce, Group, gather_columns
from neuron.layers.linear import LinearPlan
from neuron.layers.weight_target import LoadUnit
from neuron.models.checkpoint import canonical, read_checkpoint
from neuron.models.config import load_config
from neuron.models.decoder import Decoder
from neuron.models.errors import LoadError
from neuron.models.sharding import check_ranks, possible_ranks
from neuron.models.weights import load_units
from tests.support.ranks import CPU, Ranks, ranks
from tests.support.rigs import Rig
from tests.support.tiny_models import FAMILIES, write_checkpoint

TOLERANCE = 1e-4
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "one kv head": ("qwen3", {"num_key_value_heads": 1}),
    "a ratio of three": (
        "llama",
        {"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 96},
    ),
    "twelve to two": ("qwen3", {"num_attention_heads": 12, "num_key_value_heads": 2}),
    "odd vocabulary": ("qwen3", {"vocab_size": 317}),
    "odd vocabulary, untied": ("llama", {"vocab_size": 319}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
}


pytestmark = pytest.mark.xdist_group("model_ranks")


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with ranks(request.param) as found:
        yield found


def prompt(folder: Path) -> list[int]:
    generator = torch.Generator().manual_seed(7)
    tokens: list[int] = torch.randint(256, (40,), generator=generator).tolist()
    return tokens


def scored(group: Group, folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """The logits of a prompt that is computed in chunks beside another one."""
    rig = Rig(folder, dtype=dtype, group=group)
    tokens = prompt(folder)
    one, other = rig.sequence(tokens, scattered=True), rig.sequence(tokens[::-1])
    first, _ = rig.logits((one, 17), (other, 5))
    (second,) = rig.logits((one, 1))
    third, _ = rig.logits((one, 22), (other, 35))
    return torch.cat([first, second, third])


def greedy(group: Group, folder: Path, steps: int) -> list[int]:
    """A greedy answer of rank 0, which tells the others."""
    rig = Rig(folder, group=group)
    sequence = rig.sequence(prompt(folder), room=steps)
    count = sequence.total
    for _ in range(steps):
        (logits,) = rig.logits((sequence, count))
        token = logits[-1].argmax() if group.rank == 0 else torch.tensor(0)
        if not group.is_alone:
            distributed.broadcast(token, 0)
        sequence.tokens.append(int(token))
        count = 1
    return sequence.tokens[-steps:]


def written(folder: Path, name: str) -> Path:
    family, changes = VARIANTS[name]
    shape: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2} | changes
    return write_checkpoint(folder, family, **shape)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_one_rank(tmp_path: Path, group: Ranks, name: str) -> None:
    folder = written(tmp_path, name)
    expected = scored(ALONE, folder, torch.float32)
    found = group.run(scored, folder, torch.float32)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "steps"),
    [("qwen3", 20), *(pytest.param(n, 200, marks=pytest.mark.slow) for n in VARIANTS)],
)
def test_greedy_tokens_are_those_of_one_rank(
    tmp_path: Path, group: Ranks, name: str, steps: int
) -> None:
    folder = written(tmp_path, name)
    assert group.run(greedy, folder, steps) == greedy(ALONE, folder, steps)


def exact_logits(group: Group, folder: Path, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether the path is exact, and a row's logits the same in another batch."""
    rig = Rig(folder, dtype=dtype, group=group)
    group.is_exact = bool(group.least(rig.path.exact))
    tokens = prompt(folder)
    (alone,) = rig.logits((rig.sequence(tokens), 40))
    one, others = rig.sequence(tokens), [rig.sequence(tokens[n:]) for n in range(1, 6)]
    (first, *_) = rig.logits((one, 7), *((other, 9) for other in others))
    (second,) = rig.logits((one, 1))
    (third, *_) = rig.logits((one, 32), *((other, 11) for other in others))
    return group.is_exact, torch.equal(torch.cat([first, second, third]), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_is_exact(tmp_path: Path, group: Ranks, dtype: torch.dtype) -> None:
    """A sum over four ranks would otherwise depend on where in the batch a row stands."""
    is_exact, same = group.run(exact_logits, written(tmp_path, "qwen3"), dtype)
    if not is_exact:
        pytest.skip("this machine cannot be exact")
    assert same


# -- the operations themselves ---------------------------------------------------------------------


def summed(group: Group, dtype: torch.dtype, exact: bool) -> torch.Tensor:
    group.is_exact = exact
    x = torch.arange(12, dtype=dtype).view(3, 4) + group.rank
    out = AllReduce(group)(x)
    assert out.data_ptr() == x.data_ptr(), "in place"
    return out


@pytest.mark.parametrize("dtype", SUMMED)
@pytest.mark.parametrize("exact", [False, True])
def test_all_reduce_sums(group: Ranks, dtype: torch.dtype, exact: bool) -> None:
    size = group.group.size
    expected = size * torch.arange(12).view(3, 4) + size * (size - 1) // 2
    for found in group.run_all(summed, dtype, exact):
        assert torch.equal(found, expected.to(dtype))


def mistaken(group: Group, kind: str) -> str:
    x = torch.ones(4, 6)
    wrong = x[:, ::2] if kind == "strided" else x.long()
    try:
        AllReduce(group)(wrong)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "words"),
    [("strided", "shape [4, 3], strides [6, 2]"), ("integers", "the supported dtypes are float32")],
)
def test_what_all_reduce_refuses(group: Ranks, kind: str, words: str) -> None:
    assert all(words in found for found in group.run_all(mistaken, kind))


def test_alone_nothing_is_looked_at() -> None:
    x = torch.ones(4, 6)[:, ::2]
    assert AllReduce(ALONE)(x) is x


def gathered(group: Group, whole: int) -> torch.Tensor:
    share = group.share(whole)
    own = torch.arange(2 * whole).view(2, whole)[:, share.begin : share.begin + share.size]
    return gather_columns(own.float(), share, group)


@pytest.mark.parametrize("whole", [1, 3, 8, 9, 13])
def test_columns_come_together_on_rank_0(group: Ranks, whole: int) -> None:
    assert torch.equal(group.run(gathered, whole), torch.arange(2.0 * whole).view(2, whole))


# -- how models can be spread ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "kv_heads", "inner", "works"),
    [
        (4, 2, 128, [1, 2, 4]),
        (12, 4, 96, [1, 2, 4, 12]),
        (12, 3, 96, [1, 3, 6, 12]),
        (6, 1, 128, [1, 2]),
        (5, 5, 50, [1, 5]),
    ],
)
def test_the_refusal_names_the_numbers_that_work(
    tmp_path: Path, heads: int, kv_heads: int, inner: int, works: list[int]
) -> None:
    shape: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    folder = write_checkpoint(tmp_path, intermediate_size=inner, **shape)
    config = load_config(folder)
    assert possible_ranks(config) == works
    for count in range(1, 17):
        if count in works:
            check_ranks(config, count)
            continue
        with pytest.raises(LoadError) as caught:
            check_ranks(config, count)
        assert f"split over {count} devices" in caught.value.message
        assert f"one of {', '.join(map(str, works))}." in caught.value.message


# -- what a rank takes -----------------------------------------------------------------------------


class Taken(NamedTuple):
    """By one rank's load, in bytes."""

    slices: int
    along_rows: int
    """Of them, those that are single runs in the file."""
    read: int
    read_along_rows: int
    anonymous: int


def loaded(group: Group, folder: Path) -> Taken:
    """Loads a rank's part, and measures what that takes."""
    entries = read_checkpoint(folder)
    model = Decoder(load_config(folder), torch.float32, torch.float32, CPU, group)
    slots = model.slots()
    rows = {name: slot for name, slot in slots.items() if not slot.is_cut_across}
    sizes = {name: slot.target.numel() * 4 for name, slot in slots.items()}
    anonymous, read = _status("RssAnon"), _read_bytes()
    fill_model(model, entries.values(), LinearPlan())
    anonymous, read = _status("RssAnon") - anonymous, _read_bytes() - read
    by_name = {canonical(name): entry for name, entry in entries.items()}
    whole = {name: slot for name, slot in model.slots().items() if not slot.is_cut_across}
    before = _read_bytes()
    load_units([LoadUnit(lambda: None, lambda: whole)], by_name)
    return Taken(
        sum(sizes.values()),
        sum(sizes[name] for name in rows),
        read,
        _read_bytes() - before,
        anonymous,
    )


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) << 10


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().partition("rchar:")[2].split()[0])


def test_a_rank_takes_and_reads_its_slice_only(tmp_path: Path, group: Ranks) -> None:
    shape: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 8192}
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    folder = write_checkpoint(tmp_path, num_hidden_layers=4, **shape, **heads)
    whole = (folder / "model.safetensors").stat().st_size
    for taken in group.run_all(loaded, folder):
        assert taken.slices < 1.05 * whole / group.group.size
        assert taken.anonymous <= 1.1 * taken.slices + (128 << 20)
        assert taken.read_along_rows <= 1.2 * taken.along_rows
        # Columns lie in every row of their file, so that whole rows are read.
        across = (taken.slices - taken.along_rows) * group.group.size
        assert taken.read <= 1.2 * (taken.along_rows + across)


def cache_with(group: Group, folder: Path, free: list[int]) -> tuple[int, int, str]:
    """Blocks, the longest context and why, where each rank has so much *free*."""
    start = Start(str(folder), dtype="float32", devices=("cpu",) * group.size)
    entries = read_checkpoint(folder).values()
    plan = plan_load(start, load_config(folder), entries, group.rank)
    own = free[group.rank] * group.size  # on a CPU ranks share what is free
    cache, budget = _make_cache(plan, group, CPU, own)
    return cache.blocks, budget.context_limit, budget.why


@pytest.mark.parametrize("smallest", [0, 1])
def test_the_smallest_says_how_large_the_cache_is(
    tmp_path: Path, group: Ranks, smallest: int
) -> None:
    folder = write_checkpoint(tmp_path, num_attention_heads=4, num_key_value_heads=4)
    free = [32 << 20] * group.group.size
    plenty = group.run_all(cache_with, folder, free)
    free[smallest] = 1 << 20
    found = group.run_all(cache_with, folder, free)
    ((blocks, context),) = {(blocks, context) for blocks, context, _ in found}
    assert blocks < plenty[0][0]
    assert context <= blocks * 16
    if smallest == 1:
        assert (
            found[0][2] == f"{blocks * 16} tokens: what fits on the rank with the least free memory"
        )
