"""A whole fleet in one event loop: real nats-server, real gateway over HTTP, real neuron service,
scripted engines."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import httpx2

from cortex.app import make_app
from cortex.gateway import USUAL, Gateway, running_gateway
from cortex.placement.options import PlacementOptions
from neuron.config import NeuronConfig
from neuron.service.engine_protocol import StartEngine
from neuron.service.node import Node
from protocol.catalogue import Profile
from protocol.runtime.http_server import http_server
from protocol.runtime.listen import open_socket, url_of
from protocol.timing import NORMAL, Timing
from tests.support.nats import NatsServer, connected
from tests.support.scripted import Script
from tests.support.waiting import until

MODEL = "cortex-demo"
QUICK = NORMAL.scaled(0.25)
"""For fleets of which no real time is measured, and that wait for silence or its end."""
PAGE = "https://chat.example"
"""Whose pages may use the API."""


class TestFleet:
    """One gateway and any number of nodes."""

    __test__ = False

    def __init__(self, nats: NatsServer, gateway: Gateway, url: str, timing: Timing) -> None:
        self.nats = nats
        self.timing = timing
        self.gateway = gateway
        self.url = url
        self.client = httpx2.AsyncClient(base_url=url, timeout=20)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.aclose()
        await self._stack.aclose()

    async def add_node(
        self,
        start_engine: StartEngine | None,
        *,
        name: str = "n1",
        models: tuple[str, ...] = (MODEL,),
        slots: int = 4,
        drain_seconds: float = 5.0,
        url: str = "",
        **settings: Any,
    ) -> Node:
        """Starts a node, connected to *url* if given; does not wait for its models. *settings*:
        of its neuron.toml."""
        bus = await self._stack.enter_async_context(connected(url or self.nats.url, name))
        config = NeuronConfig(
            name=name, default_models=models, slots=slots, drain_seconds=drain_seconds, **settings
        )
        node = Node(bus, config, start_engine, self.timing)
        task = asyncio.create_task(node.run(), name=f"node {name}")

        async def stop() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(stop)
        return node

    async def ready(self, model: str = MODEL, nodes: int = 1) -> None:
        """Waits until that many nodes serve the model."""
        await until(lambda: len(self.gateway.fleet.ready(model)) == nodes, what="ready nodes")

    async def is_idle(self, script: Script) -> bool:
        """Nothing waits, runs, or is stored."""
        dispatcher = self.gateway.dispatcher
        if dispatcher.in_flight or dispatcher.waiting or dispatcher.handed_over:
            return False
        if any(engine.open for engine in script.engines):
            return False
        info = await self.gateway.bus.request("$JS.API.STREAM.INFO.JOBS")
        return info is not None and json.loads(info)["state"]["messages"] == 0

    async def chat(self, text: str = "Hi", **body: Any) -> httpx2.Response:
        """A non-streaming request."""
        return await self.client.post("/v1/chat/completions", json=chat_body(text, **body))

    @contextlib.asynccontextmanager
    async def streaming(self, text: str = "Hi", **body: Any) -> AsyncIterator[httpx2.Response]:
        """A streaming request whose body has not been read."""
        json_body = chat_body(text, stream=True, **body)
        async with self.client.stream("POST", "/v1/chat/completions", json=json_body) as answer:
            yield answer

    async def stream_events(self, text: str = "Hi", **body: Any) -> list[dict[str, Any]]:
        """All events of a streaming answer, ``[DONE]`` as an empty dict."""
        async with self.streaming(text, **body) as answer:
            assert answer.status_code == 200, await answer.aread()
            return [event async for event in sse_events(answer)]


def chat_body(text: str, **body: Any) -> dict[str, Any]:
    """A chat request with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}


async def sse_events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The data events of an SSE body; comments are skipped."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield {} if data == "[DONE]" else json.loads(data)


@contextlib.asynccontextmanager
async def running_fleet(
    nats: NatsServer,
    profiles: tuple[Profile, ...] | None = None,
    options: PlacementOptions = USUAL,
    timing: Timing = NORMAL,
) -> AsyncIterator[TestFleet]:
    """A gateway without nodes, reachable over HTTP; *profiles* are its models.toml."""
    async with (
        connected(nats.url, "gateway") as bus,
        running_gateway(bus, profiles, options, timing) as gateway,
    ):
        listener = open_socket("127.0.0.1:0")
        url = url_of(listener)
        app = make_app(gateway, "http://metrics", [PAGE])
        async with (
            http_server(app, listener, drain_seconds=0.2),
            TestFleet(nats, gateway, url, timing) as fleet,
        ):
            yield fleet


@contextlib.asynccontextmanager
async def scripted_fleet(
    nats: NatsServer, script: Script, *, nodes: int = 1, timing: Timing = NORMAL
) -> AsyncIterator[TestFleet]:
    """A fleet that is ready to answer by a script."""
    async with running_fleet(nats, timing=timing) as fleet:
        for number in range(1, nodes + 1):
            await fleet.add_node(script.start, name=f"n{number}", slots=script.slots)
            await fleet.ready(nodes=number)  # so that the script's engines are in the nodes' order
        yield fleet


@contextlib.asynccontextmanager
async def spied(nats: NatsServer, subject: str) -> AsyncIterator[list[bytes]]:
    """Every message that is published on *subject* from now on."""
    seen: list[bytes] = []
    async with connected(nats.url, "spy") as bus:
        await bus.subscribe(subject, lambda m: seen.append(m.data))
        assert await bus.flush(), "else what comes at once would be missed"
        yield seen
