"""Ranks on NVIDIA GPUs: NCCL by itself, and a model over two cards.

Marked ``gpu`` and skipped without one: ``bin/test -m gpu``.
"""

from pathlib import Path

import pytest
import torch
from torch import distributed

from neuron.engine_process.client import EngineProcess
from neuron.ipc.messages import Add, Output, SamplingParams, Start
from neuron.layers.group import SUMMED, AllReduce, Group
from tests.support.tiny_models import FAMILIES, write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("gpu"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


def test_nccl_sums_alone_and_in_a_graph() -> None:
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    try:
        group = Group(0, 1)
        group.size = 2  # so that it is not skipped
        summed = AllReduce(group)
        for dtype in SUMMED:
            x = torch.zeros(4, 8, dtype=dtype, device=device)
            summed(x)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = summed(x.add_(1))
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
            assert out.data_ptr() == x.data_ptr()
            assert torch.equal(x, torch.full_like(x, 3)), "of one rank; and nothing is copied"
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", FAMILIES)
async def test_two_cards_answer_as_one(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path, family, num_attention_heads=4, num_key_value_heads=2)
    found = []
    for devices in (("cuda:0",), ("cuda:0", "cuda:1")):
        start = Start(str(folder), device=devices[0], dtype="float32")
        if len(devices) > 1:
            start = Start(str(folder), device=devices[0], devices=devices, dtype="float32")
        engine = await EngineProcess.start(start)
        stream = await engine.add(Add(1, list(range(60)), SamplingParams(max_tokens=100)))
        found.append([t async for e in stream if isinstance(e, Output) for t in e.tokens])
        await engine.stop()
    assert found[0] == found[1]
