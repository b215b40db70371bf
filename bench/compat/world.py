"""A gateway under test, and the list of what is expected of it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from tests.support.fleet import MODEL

KEY = "sk-0123456789abcdef0123456789abcdef"
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
OUTPUTS = {
    "plain": "Hello there.",
    "unicode": "日本 🎉 ä",
    "thinking": "<think>\nhm\n</think>\n\nYes.",
    "call": f"<think>\nhm\n</think>\n\nLook.\n{CALL}",
    "calls": f"{CALL}\n{CALL}",
    "empty call": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    "stop": "one END two",
    "long": "x " * 3000,
}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
CHAT_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
TOOLS = [{"name": "f", "description": "does it", "input_schema": SCHEMA}]
RESPONSE_TOOLS = [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}]


class World:
    """One gateway under test, and what the engine behind it was asked."""

    def __init__(self, name: str, client: httpx2.AsyncClient, prompts: list[str]) -> None:
        self.name = name
        self._client = client
        self._prompts = prompts

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        """One request."""
        headers = {"authorization": f"Bearer {KEY}", "anthropic-version": "2023-06-01"}
        sent = {"model": MODEL, **body}
        return await self._client.post(path, json=sent, headers=headers)

    async def answer(self, path: str, **body: Any) -> Any:
        """Its JSON, if all is well."""
        found = await self.post(path, **body)
        assert found.status_code == 200, f"{found.status_code} {found.text[:200]}"
        return found.json()

    async def stream(self, path: str, **body: Any) -> str:
        """A whole stream."""
        found = await self.post(path, stream=True, **body)
        assert found.status_code == 200, f"{found.status_code} {found.text[:200]}"
        return found.text

    async def prompt(self, path: str, **body: Any) -> str:
        """What the model reads."""
        await self.answer(path, **body)
        return self._prompts[-1]

    async def pauses(self, path: str, **body: Any) -> list[float]:
        """Seconds between the pieces of a stream, for the first six."""
        began, found = time.monotonic(), []
        headers = {"authorization": f"Bearer {KEY}", "anthropic-version": "2023-06-01"}
        sent = {"model": MODEL, "stream": True, **body}
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(7),
                self._client.stream("POST", path, json=sent, headers=headers) as answer,
            ):
                async for _ in answer.aiter_raw():
                    found.append(time.monotonic() - began)
                    began = time.monotonic()
        return [*found, time.monotonic() - began]


Check = Callable[[World], Awaitable[None]]
CHECKS: list[tuple[str, Check]] = []


def expects(what: str) -> Callable[[Check], Check]:
    """Adds a row to the table."""

    def add(check: Check) -> Check:
        CHECKS.append((what, check))
        return check

    return add


def turn(scenario: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"scenario: {scenario}."}]


def message(scenario: str, **more: Any) -> dict[str, Any]:
    return {"messages": turn(scenario), "max_tokens": 5000, **more}
