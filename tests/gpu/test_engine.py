"""The engine on an NVIDIA GPU: same logits and same answers as on the CPU.

Marked ``gpu`` and skipped without one: ``bin/test -m gpu``.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron.engine.loader import load_engine
from neuron.engine_process.client import EngineProcess
from neuron.hardware.discovery import Hardware
from neuron.ipc.messages import Add, Output, SamplingParams, Start
from neuron.models.config import load_config
from protocol.fleet import DeviceKind
from tests.support.rigs import Rig
from tests.support.tiny_models import FAMILIES, write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("gpu"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]
TOKENS = random.Random(1).choices(range(250), k=100)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_cpus(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path, family)
    cpu, gpu = Rig(folder), Rig(folder, device=torch.device("cuda:0"))
    for chunks in ([100], [37, 63], [64, *[1] * 36]):
        sequences = [(rig, rig.sequence(TOKENS, scattered=True)) for rig in (cpu, gpu)]
        outs = [
            torch.cat([rig.logits((sequence, count))[0].cpu() for count in chunks])
            for rig, sequence in sequences
        ]
        assert (outs[0] - outs[1]).abs().max() <= 1e-4 * outs[0].abs().max()


def answers(folder: Path, adds: list[Add], **start: Any) -> tuple[dict[int, list[int]], int]:
    """What an engine answers when it is asked everything at once, and how often it preempted."""
    engine, _ = load_engine(Start(str(folder), dtype="float32", **start), lambda _: None)
    for add in adds:
        assert engine.add(add) is None
    made: dict[int, list[int]] = {add.id: [] for add in adds}
    preemptions = 0
    while engine.has_work:
        step = engine.step()
        preemptions = step.preemptions
        for output in step.outputs:
            made[output.id] += output.tokens
    return made, preemptions


def test_sharing_and_preemption_change_no_answer(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    adds = [Add(n, TOKENS[:64] + [n] * 40, SamplingParams(max_tokens=60)) for n in range(12)]
    expected, _ = answers(folder, adds, device="cpu")
    assert answers(folder, adds, device="cuda:0") == (expected, 0)
    blocks = 30 * 16 * load_config(folder).kv_bytes_per_token(4)
    small, preemptions = answers(folder, adds, device="cuda:0", kv_cache_bytes=blocks)
    assert small == expected
    assert preemptions > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
async def test_an_engine_process_generates_on_the_gpu(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path)
    answers = []
    for device in ("cpu", "cuda:0"):
        engine = await EngineProcess.start(Start(str(folder), device=device, dtype=dtype))
        tokens: list[int] = []
        async for event in await engine.add(Add(1, TOKENS, SamplingParams(max_tokens=32))):
            if isinstance(event, Output):
                tokens += event.tokens
        await engine.stop()
        answers.append(tokens)
    assert len(answers[1]) == 32
    if dtype == "float32":
        assert answers[0] == answers[1]


def test_the_gpu_is_discovered() -> None:
    hardware = Hardware(visible_devices=None)
    devices = hardware.discover()
    gpu = next(device for device in devices if device.kind is DeviceKind.CUDA)
    properties = torch.cuda.get_device_properties(0)
    assert gpu.name == properties.name
    assert abs(gpu.memory_bytes - properties.total_memory) < 0.1 * properties.total_memory
    assert gpu.compute_capability == f"{properties.major}.{properties.minor}"
    usage = next(u for u in hardware.usage(devices) if u.kind is DeviceKind.CUDA)
    assert 0 < usage.memory_free_bytes <= gpu.memory_bytes
    hardware.close()
