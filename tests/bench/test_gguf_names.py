"""Every tensor of the benchmark's model has a name of its own in GGUF files."""

from bench.engine.checkpoint import QWEN3_06B, gguf_name
from tests.support.tiny_models import make_config, tensor_shapes


def test_every_tensor_has_a_name_of_its_own() -> None:
    shapes = tensor_shapes(make_config("qwen3", **QWEN3_06B))
    names = {gguf_name(name) for name in shapes}
    assert len(names) == len(shapes) == 2 + 28 * 11
    assert "blk.27.ffn_norm.weight" in names
    assert "token_embd.weight" in names
