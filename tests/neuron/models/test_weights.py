"""Checkpoints: every stored form gives the same parameters, and every damage its own words."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuron.layers.linear import Kernel
from neuron.models.checkpoint import INDEX, SINGLE, canonical, read_checkpoint
from neuron.models.errors import LoadCode, LoadError
from tests.support.rigs import plain_model
from tests.support.tiny_models import FAMILIES, write_checkpoint

CPU = torch.device("cpu")


def parameters(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: slot.target for name, slot in plain_model(folder, dtype).slots().items()}


@pytest.mark.parametrize("form", [{}, {"shards": 3}, {"prefix": ""}, {"shards": 2, "prefix": ""}])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_loads_the_same(
    tmp_path: Path, family: str, form: dict[str, Any], tied: bool
) -> None:
    changes: dict[str, Any] = {"tie_word_embeddings": tied, "attention_bias": True}
    folder = write_checkpoint(tmp_path / "form", family, **changes, **form)
    plain = write_checkpoint(tmp_path / "plain", family, **changes)
    stored = load_file(plain / SINGLE)
    loaded = parameters(folder)
    assert {name.removeprefix("model.") for name in stored} == loaded.keys()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name.removeprefix("model.")], tensor), name


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@pytest.mark.parametrize("tied", [True, False])
def test_the_text_part_of_a_vision_model_is_loaded(tmp_path: Path, prefix: str, tied: bool) -> None:
    folder = write_checkpoint(tmp_path, "gemma3-vision", tie_word_embeddings=tied, prefix=prefix)
    stored = load_file(folder / SINGLE)
    assert any("vision_tower" in name for name in stored)
    loaded = parameters(folder)
    for name, tensor in stored.items():
        if not ("vision_tower" in name or "multi_modal_projector" in name):
            assert torch.equal(loaded.pop(canonical(name)), tensor), name
    assert not loaded


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_dtypes_are_converted_tensor_by_tensor(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuron.models.weights.PIECE_BYTES", 1000)  # many pieces a tensor
    folder = write_checkpoint(tmp_path, dtype=stored)
    loaded = parameters(folder, wanted)
    for name, tensor in load_file(folder / SINGLE).items():
        mine = loaded[name.removeprefix("model.")]
        assert mine.dtype == wanted
        assert torch.equal(mine, tensor.to(wanted)), name


def test_a_tied_model_may_store_its_head_and_old_buffers_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, folder / SINGLE)
    assert "lm_head.weight" not in parameters(folder)


Damage = Callable[[Path], Any]


def edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE)

    return damage


def overwrite(start: int, data: bytes) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / SINGLE
        old = file.read_bytes()
        file.write_bytes(old[:start] + data + old[start + len(data) :])

    return damage


def replace_header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        old = (folder / SINGLE).read_bytes()
        length = int.from_bytes(old[:8], "little")
        header = json.loads(old[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + old[8 + length :])

    return damage


NORM, KEY = "model.norm.weight", "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (
            lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-5]),
            "corrupt",
            "truncated",
        ),
        (lambda f: (f / SINGLE).write_bytes(b""), "corrupt", "0 bytes"),
        (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes() + b"x"), "corrupt", "descri"),
        (overwrite(0, b"\xff" * 8), "corrupt", "header claims"),
        (overwrite(8, b"nonsense"), "corrupt", "header cannot be read"),
        (replace_header(lambda h: h[NORM].update(shape=[9])), "corrupt", "cannot take 256 bytes"),
        (replace_header(lambda h: h[NORM].update(shape=[-64])), "corrupt", NORM),
        (replace_header(lambda h: h[NORM].update(dtype="F8_E4M3")), "unsupported", "F8_E4M3"),
        (replace_header(lambda h: h[NORM].pop("shape")), "corrupt", "shape"),
        (edit(lambda t: t.pop(NORM)), "corrupt", "lacks 1 tensor (norm.weight)"),
        (edit(lambda t: t.update(extra=torch.ones(1))), "corrupt", "unexpected 1 tensor (extra)"),
        (
            edit(lambda t: t.update({KEY: torch.ones(2, 2)})),
            "corrupt",
            "[2, 2] instead of [64, 64]",
        ),
        (lambda f: (f / SINGLE).unlink(), "not_found", "no *.safetensors"),
        (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "unsupported", "pytorch_model"),
        (lambda f: (f / SINGLE).rename(f / "m.gguf"), "unsupported", "m.gguf"),
        (lambda f: (f / INDEX).write_text("{"), "corrupt", "index"),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../b.safetensors"}}'),
            "corrupt",
            "outside",
        ),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "not_found",
            "1 shards, but only 0 exist",
        ),
        (
            lambda f: (f / INDEX).write_text(f'{{"weight_map": {{"a": "{SINGLE}"}}}}'),
            "corrupt",
            "lacks tensor 'a'",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Damage, code: str, words: str) -> None:
    damage(write_checkpoint(tmp_path))
    with pytest.raises(LoadError) as caught:
        parameters(tmp_path)
    assert caught.value.code == code
    assert words in caught.value.message


def edit_config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("family", "damage", "words"),
    [
        (
            "llama",
            edit_config(attention_bias=True),
            "lacks 12 tensors (layers.0.self_attn.k_proj.b",
        ),
        ("llama", edit_config(mlp_bias=True), "lacks 9 tensors (layers.0.mlp.down_proj.bias"),
        ("llama", edit_config(tie_word_embeddings=True, head_dim=8), "q_proj.weight' has shape"),
        ("llama", edit_config(num_hidden_layers=4), "lacks 9 tensors (layers.3."),
        ("llama", edit_config(num_hidden_layers=2), "has unexpected 9 tensors (layers.2."),
        ("qwen2", edit_config(architectures=["LlamaForCausalLM"]), "has unexpected 9 tensors (lay"),
        ("qwen3", edit_config(architectures=["LlamaForCausalLM"]), "self_attn.k_norm.weight"),
        ("llama", edit_config(architectures=["Qwen2ForCausalLM"]), "lacks 9 tensors"),
        ("mistral", edit_config(architectures=["Qwen3ForCausalLM"]), "lacks 6 tensors"),
        ("mistral", edit_config(vocab_size=300), "[320, 64] instead of [300, 64]"),
        ("gemma3", edit_config(architectures=["Qwen3ForCausalLM"]), "pre_feedforward_layernorm"),
        ("gemma3", edit_config(tie_word_embeddings=False), "lacks 1 tensor (lm_head.weight)"),
        ("gemma3", edit(lambda t: t.update({"vision_tower.x": torch.ones(1)})), "(vision_tower.x)"),
        (
            "gemma3-vision",
            edit(lambda t: t.update(audio=torch.ones(1))),
            "unexpected 1 tensor (aud",
        ),
        (
            "qwen3",
            edit(lambda t: t.update({"norm.weight": torch.ones(64)})),
            "one tensor twice, as 'model.norm.weight' and 'norm.weight'",
        ),
    ],
)
def test_a_config_of_other_weights_is_named(
    tmp_path: Path, family: str, damage: Damage, words: str
) -> None:
    damage(write_checkpoint(tmp_path, family))
    with pytest.raises(LoadError) as caught:
        parameters(tmp_path)
    assert caught.value.code is LoadCode.CORRUPT
    assert words in caught.value.message
    assert "ownload the model again" in caught.value.message


def test_a_single_file_may_have_any_name(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / SINGLE).rename(tmp_path / "weights.safetensors")
    assert parameters(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_corrupt(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    entries = read_checkpoint(folder)
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(LoadError, match="truncated") as caught:
        plain_model(folder, torch.float32, entries)
    assert caught.value.code is LoadCode.CORRUPT


MEASURE = """
import sys, threading, torch
from pathlib import Path
from neuron.engine.loader import fill_model
from neuron.engine.machine import heap
from neuron.layers.linear import Kernel, LinearPlan
from neuron.models.checkpoint import read_checkpoint
from neuron.models.config import load_config
from neuron.models.decoder import Decoder

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("RssAnon"))

torch.set_num_threads(1)
torch.ones(1000, 100).to(torch.bfloat16)
folder, peak, stop = Path(sys.argv[1]), [0], threading.Event()
plan = LinearPlan(Kernel(sys.argv[2]), least_rows=2)
before = anonymous()

def watch():
    while not stop.wait(0.001):
        peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
model = Decoder(load_config(folder), torch.float32, torch.float32, torch.device("cpu"))
weights = sum(slot.target.nbytes for slot in model.slots().values())
with heap.tidy():
    fill_model(model, read_checkpoint(folder).values(), plan)
stop.set()
watcher.join()
print(max(peak[0], anonymous()) - before, weights)
"""


@pytest.mark.parametrize("kernel", Kernel)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_loading_holds_no_second_copy(tmp_path: Path, stored: torch.dtype, kernel: Kernel) -> None:
    """The peak of anonymous memory: what stays, a layer and 128 MiB."""
    shape: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
        "vocab_size": 8000,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    folder = write_checkpoint(tmp_path, dtype=stored, shards=2, **shape)
    command = [sys.executable, "-c", MEASURE, str(folder), kernel]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, weights = map(int, result.stdout.split())
    head = 8000 * 1024 * 4
    stays = weights + (head if kernel is Kernel.PACKED else 0)  # packed, it is not the embedding
    layer = (weights - head) / 6
    assert layer + 2**27 < 0.65 * stays, "a second copy would be seen"
    assert growth <= stays + layer + 2**27
    assert growth >= 0.9 * stays, "nothing was measured"
