"""A script that behaves like a model which is asked to mend a file, in the tools of an agent."""

import asyncio
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neuron import demo_model
from neuron.ipc.messages import Add
from neuron.text.tokenizer import Tokenizer

PACKAGES = (
    "@anthropic-ai/claude-code@2.1.197",
    "@openai/codex@0.171.0",
    "opencode-ai@1.18.33",
)
FOLDER = Path(__file__).parents[2] / ".clients"


def recipe(heading: str, url: str, model: str) -> str:
    """The first block under a heading of docs/clients.md, for this fleet."""
    page = (FOLDER.parent / "docs" / "clients.md").read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2]
    block = section.partition("```")[2].partition("\n")[2].partition("```")[0]
    return block.replace("http://127.0.0.1:31313", url).replace("qwen3-coder", model)


async def installed(name: str) -> str:
    """The program's path; npm fetches it if need be."""
    path = FOLDER / "node_modules" / ".bin" / name
    if not path.exists():
        FOLDER.mkdir(exist_ok=True)
        code, said = await run(["npm", "install", "--no-fund", "--no-audit", *PACKAGES], FOLDER, {})
        if code:
            pytest.skip(f"npm cannot install it: {said[-300:]}")
    return str(path)


async def run(
    command: Sequence[str], folder: Path, environment: dict[str, str], seconds: float = 120
) -> tuple[int, str]:
    """Exit code, and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PWD": str(folder), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        out, _ = await process.communicate()
        return -1, out.decode(errors="replace")
    return process.returncode or 0, out.decode(errors="replace")


class Agent:
    """Calls one tool after the other, then says that it is done."""

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        self._calls = calls
        self._tokenizer = Tokenizer.load(Path(next(iter(demo_model.__path__))))
        self.prompts: list[list[int]] = []
        """Of each request."""

    def text(self, number: int) -> str:
        """A prompt, as the model reads it."""
        return self._tokenizer.decode(self.prompts[number])

    def answer(self, add: Add) -> Sequence[str]:
        """The next step, by how many results there are."""
        self.prompts.append(add.prompt)
        done = self.text(-1).count("<tool_response>")
        if done >= len(self._calls):
            return ("The typo ", "is mended.")
        name, arguments = self._calls[done]
        call = json.dumps({"name": name, "arguments": arguments})
        text = f"I go on.\n<tool_call>\n{call}\n</tool_call>"
        return re.findall(r".{1,7}", text, re.DOTALL)


def misspelt(folder: Path) -> Path:
    """The file that shall be mended, in a folder of its own."""
    file = folder / "work" / "hello.txt"
    file.parent.mkdir()
    file.write_text("Hello, wrold!\n")
    return file


def assert_mended(file: Path, agent: Agent) -> None:
    """It is, and every prompt began with the one before."""
    assert file.read_text() == "Hello, world!\n"
    first, second, third = agent.prompts
    assert reused(first, second) >= 0.99
    assert reused(second, third) >= 0.99


def reused(earlier: Sequence[int], later: Sequence[int]) -> float:
    """The share of a prompt that a prefix cache gives back to the next one."""
    pairs = zip(earlier, later, strict=False)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return len(list(same)) / len(earlier)
