"""What a model takes in memory, beside what is predicted: ``python -m bench.memory``.

For each shape: a checkpoint of random weights, an engine process as the service starts it, a long
prompt alone, then as many prompts and answers as there are slots. The model's memory is the most
that the process has had, less that of an engine without a model. Takes 4 GB of disk and 12 GiB of
memory; names of shapes (or parts of them) as arguments measure only those.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from neuron.config import engine_environment
from neuron.engine_process.client import EngineProcess
from neuron.engine_process.launch import start_python
from neuron.hardware.host import written_bytes
from neuron.ipc.messages import Add, SamplingParams, Start
from neuron.models.checkpoint import ITEM_BYTES, SINGLE, read_checkpoint
from neuron.models.config import load_config
from neuron.sizing.estimate import PROCESS_BYTES, EstimateSettings, MemoryEstimate, estimate
from protocol.fleet import DeviceKind
from tests.support.tiny_models import make_config, make_tokenizer, tensor_shapes

MIB = 1 << 20
SLOTS = 4
CONTEXT = 2304
LONG_PROMPT = 2100
"""Beyond the 2,048 tokens whose partial results attention holds at once."""
WATCH_SECONDS = 0.05
BLOCK_NUMBERS = 1 << 22
"""Random numbers are made once and repeated: it is their place that takes memory."""
STORED = {"F32": torch.float32, "BF16": torch.bfloat16}

EMPTY = """
import sys
import neuron.engine.serve
from neuron.engine.machine.device import open_device
open_device("cpu")
print("ready", flush=True)
sys.stdin.read()
"""
"""An engine that has imported everything and opened its device."""


class Shape(NamedTuple):
    """A model to be measured."""

    name: str
    family: str
    stored: str
    """As safetensors spells it."""
    config: dict[str, Any]


def _sizes(
    hidden: int, layers: int, heads: tuple[int, int, int], inner: int, vocab: int, *, tied: bool
) -> dict[str, Any]:
    """*heads*: query heads, key heads, and their size."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
    }


SHAPES = (
    Shape("llama-0.1b", "llama", "BF16", _sizes(768, 12, (12, 12, 64), 2048, 32_000, tied=True)),
    Shape("qwen3-0.2b", "qwen3", "BF16", _sizes(768, 12, (12, 4, 128), 2048, 151_936, tied=True)),
    Shape(
        "gemma3-0.3b",
        "gemma3",
        "BF16",
        _sizes(640, 18, (4, 1, 256), 2048, 262_144, tied=True)
        | {"sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256},
    ),
    Shape("wide-0.4b", "llama", "F32", _sizes(2048, 4, (32, 8, 64), 8192, 32_000, tied=False)),
    Shape("qwen2-0.5b", "qwen2", "BF16", _sizes(896, 24, (14, 2, 64), 4864, 151_936, tied=True)),
    Shape("deep-0.6b", "mistral", "BF16", _sizes(1024, 40, (16, 4, 64), 2816, 64_000, tied=False)),
    Shape("qwen3-0.6b", "qwen3", "BF16", _sizes(1024, 28, (16, 8, 128), 3072, 151_936, tied=True)),
    Shape("llama-1.1b", "llama", "BF16", _sizes(2048, 22, (32, 4, 64), 5632, 32_000, tied=False)),
    Shape("qwen3-1.7b", "qwen3", "BF16", _sizes(2048, 28, (16, 8, 128), 6144, 151_936, tied=True)),
)


class Found(NamedTuple):
    """One measurement."""

    parameters: int
    dtype: str
    predicted: MemoryEstimate
    loaded_bytes: int
    """Above the empty engine, when it was ready."""
    real_bytes: int
    """Above the empty engine, at most."""
    load_seconds: float

    @property
    def predicted_bytes(self) -> int:
        """Above the empty engine."""
        return self.predicted.total_bytes - PROCESS_BYTES[DeviceKind.CPU]

    @property
    def bound_bytes(self) -> int:
        """How far off the prediction may be."""
        return max(self.real_bytes // 20, 48 * MIB)


def write(folder: Path, shape: Shape) -> int:
    """Writes the checkpoint in pieces; returns its parameters. Norms are one, all else is noise."""
    dtype, item = STORED[shape.stored], ITEM_BYTES[shape.stored]
    config = make_config(
        shape.family, torch_dtype=str(dtype).removeprefix("torch."), **shape.config
    )
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    sizes = {name: torch.Size(size) for name, size in tensor_shapes(config).items()}
    header, at = {}, 0
    for name, size in sizes.items():
        end = at + size.numel() * item
        header[name] = {"dtype": shape.stored, "shape": [*size], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    noise = torch.randn(BLOCK_NUMBERS, generator=torch.Generator().manual_seed(0)) * 0.02
    block = memoryview(noise.to(dtype).view(torch.uint8).numpy().data)
    one = memoryview(torch.ones(BLOCK_NUMBERS, dtype=dtype).view(torch.uint8).numpy().data)
    with (folder / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in sizes.items():
            left = size.numel() * item
            while left:
                left -= file.write((one if "norm" in name else block)[:left])
    return sum(size.numel() for size in sizes.values())


async def empty_engine() -> int:
    """Private memory of an engine process without a model."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        EMPTY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=engine_environment(),
    )
    assert process.stdout is not None
    await process.stdout.readline()
    size = written_bytes(process.pid)
    process.kill()
    await process.wait()
    return size


async def measure(folder: Path, empty_bytes: int, parameters: int = 0) -> Found:
    """Loads the model in *folder* with the KV cache that the estimate says, and uses it."""
    config = load_config(folder)
    entries = read_checkpoint(folder).values()
    predicted = estimate(
        config, entries, EstimateSettings(DeviceKind.CPU, SLOTS, max_context=CONTEXT)
    )
    start = Start(
        str(folder),
        max_running=SLOTS,
        max_context=CONTEXT,
        kv_cache_bytes=predicted.kv_bytes,
    )
    began = time.monotonic()
    launch = functools.partial(start_python, environment=engine_environment())
    engine = await EngineProcess.start(start, launch=launch)
    seconds = time.monotonic() - began
    try:
        loaded = written_bytes(engine.pid)
        async with _watch(engine.pid) as seen:
            await _use(engine, min(config.vocab_size, 30_000))
    finally:
        await engine.stop()
    real = max(loaded, *seen) - empty_bytes
    dtype = engine.ready.dtype
    return Found(parameters, dtype, predicted, loaded - empty_bytes, real, seconds)


@contextlib.asynccontextmanager
async def _watch(pid: int) -> AsyncIterator[list[int]]:
    """What the process has, again and again."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(await asyncio.to_thread(written_bytes, pid))
            await asyncio.sleep(WATCH_SECONDS)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        seen.append(written_bytes(pid))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _use(engine: EngineProcess, vocabulary: int) -> None:
    """A long prompt alone; then a prompt and an answer in every slot, begun one by one."""
    rng = random.Random(1)

    async def one(number: int, tokens: int, answer: int) -> None:
        prompt = [rng.randrange(vocabulary) for _ in range(tokens)]
        sample = SamplingParams(answer, temperature=1.0, top_p=0.9, seed=number)
        async for _ in await engine.add(Add(number, prompt, sample)):
            pass

    await one(0, LONG_PROMPT, 2)
    await asyncio.gather(*(one(slot, 60 * slot, 16) for slot in range(1, SLOTS + 1)))


def row(name: str, found: Found) -> str:
    """A line of the table; sizes in MiB."""
    predicted = found.predicted
    off = found.predicted_bytes - found.real_bytes
    sizes = (
        predicted.weight_bytes,
        predicted.kv_bytes,
        found.predicted_bytes,
        found.loaded_bytes,
        found.real_bytes,
    )
    cells = (
        name,
        f"{found.parameters / 1e6:,.0f} M",
        found.dtype,
        *(f"{size / MIB:,.0f}" for size in sizes),
        f"{off / MIB:+,.0f} ({off / found.real_bytes:+.1%})",
        f"±{found.bound_bytes / MIB:,.0f}{'' if abs(off) <= found.bound_bytes else ' missed'}",
    )
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| shape | parameters | computed in | weights | KV cache | predicted | loaded | real | off "
    "| bound |\n| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


async def run(names: list[str]) -> None:
    """Prints the table."""
    empty = await empty_engine()
    print(f"An engine without a model: {empty / MIB:.0f} MiB. The rest is above it, in MiB.\n")
    print(HEAD)
    for shape in SHAPES:
        if names and not any(name in shape.name for name in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            parameters = await asyncio.to_thread(write, Path(folder), shape)
            found = await measure(Path(folder), empty, parameters)
        print(row(shape.name, found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of shapes, or parts of them; none = all")
    asyncio.run(run(parser.parse_args().names))


if __name__ == "__main__":
    main()
