"""A fleet of real processes that tests kill and freeze: nats-server, gateways, neurons."""

import asyncio
import contextlib
import functools
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.support.nats import NatsServer
from tests.support.waiting import until

MODEL = "cortex-demo"


def free_port() -> int:
    """A port that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One program of the fleet, which comes back with the same arguments."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.is_frozen = False
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is frozen."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    async def start(self) -> None:
        """Returns at once; readiness is the fleet's business."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, start_new_session=True
            )
        self.is_frozen = False

    async def kill(self) -> None:
        """SIGKILL, gone when it returns."""
        if self._process is not None and self.is_alive:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.is_frozen = False

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Any other."""
        assert self._process
        self._process.send_signal(number)

    async def ended(self, seconds: float) -> int:
        """Its exit code; raises ``TimeoutError``."""
        assert self._process
        return await asyncio.wait_for(self._process.wait(), seconds)

    @property
    def logged(self) -> str:
        """All that it has said, on both of its outputs."""
        return self._log.read_text()


class ProcessFleet:
    """Real processes around one nats-server."""

    def __init__(self, nats: NatsServer, logs: Path) -> None:
        self.nats = nats
        self.gateways: list[Process] = []
        self.urls: list[str] = []
        self.metrics_urls: list[str] = []
        self.neurons: list[Process] = []
        self._logs = logs

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in (*self.gateways, *self.neurons):
            with contextlib.suppress(ProcessLookupError):
                if process.is_frozen:
                    process.thaw()
                await process.kill()

    async def add_gateway(self, *, models: str = "", **settings: Any) -> str:
        """Its URL; does not wait. *models*: its models.toml; *settings*: of ``[gateway]``."""
        port, name = free_port(), f"gateway{len(self.gateways) + 1}"
        command = [sys.executable, "-m", "cortex", "serve", "--nats", self.nats.url]
        metrics = free_port()
        self.metrics_urls.append(f"http://127.0.0.1:{metrics}/metrics")
        command += ["--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics}"]
        command += ["--models", models] if models else []
        if settings:
            config = self._logs / f"{name}.toml"
            lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
            config.write_text("[gateway]\n" + "".join(lines))
            command += ["--config", str(config)]
        process = Process(name, command, self._logs / f"{name}.log")
        await process.start()
        self.gateways.append(process)
        self.urls.append(f"http://127.0.0.1:{port}")
        return self.urls[-1]

    async def add_neuron(self, *names: str, url: str = "", **options: Any) -> Process:
        """One process with scripted engines, connected to *url* if given; *options* as of
        ``scripted_neuron``."""
        command = [sys.executable, "-m", "tests.support.scripted_neuron"]
        command += ["--nats", url or self.nats.url]
        for name in names:
            command += ["--name", name]
        for key, value in options.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        process = Process(names[0], command, self._logs / f"{names[0]}.log")
        await process.start()
        self.neurons.append(process)
        return process

    def has_logged(self, text: str) -> bool:
        """Whether a neuron's log has it."""
        return any(text in (self._logs / f"{n.name}.log").read_text() for n in self.neurons)

    async def ready(self, nodes: int, seconds: float = 20.0) -> None:
        """Until every gateway sees so many nodes that serve the model."""
        async with httpx2.AsyncClient(timeout=2) as client:
            for url in self.urls:
                serving = functools.partial(_serving, client, url, nodes)
                await until(serving, seconds=seconds, what=f"{nodes} nodes at {url}")


async def _serving(client: httpx2.AsyncClient, url: str, nodes: int) -> bool:
    try:
        found = (await client.get(f"{url}/fleet")).json()["nodes"]
    except httpx2.TransportError:
        return False
    records = [model["record"] for node in found for model in node["models"]]
    return len([r for r in records if (r["model"], r["state"]) == (MODEL, "ready")]) >= nodes


class Tape:
    """What one streaming client saw, and when."""

    def __init__(self) -> None:
        self.text = ""
        self.job_id = ""
        self.last_id = ""
        self.finish = ""
        self.error: dict[str, Any] | None = None
        self.status = 0
        self.done = False
        self.began = time.monotonic()
        self.last_at = self.began
        self.first_after = 0.0
        """Seconds to the first piece."""
        self.worst_gap = 0.0

    def saw(self, text: str) -> None:
        """A piece of the answer arrived."""
        now = time.monotonic()
        if self.text:
            self.worst_gap = max(self.worst_gap, now - self.last_at)
        else:
            self.first_after = now - self.began
        self.last_at = now
        self.text += text


@contextlib.asynccontextmanager
async def http_client() -> AsyncIterator[httpx2.AsyncClient]:
    """For many long streams."""
    limits = httpx2.Limits(max_connections=2000)
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(60, connect=5), limits=limits) as client:
        yield client


async def play(client: httpx2.AsyncClient, url: str, tape: Tape, **body: Any) -> None:
    """A streaming request to the end; raises ``TransportError`` when the connection breaks."""
    sent = {
        "model": MODEL,
        "stream": True,
        "messages": [{"role": "user", "content": "Go on."}],
        **body,
    }
    request = client.stream("POST", f"{url}/v1/chat/completions", json=sent)
    async with request as answer:
        await _record(answer, tape)


async def play_on(client: httpx2.AsyncClient, url: str, tape: Tape) -> None:
    """Takes the stream up at another gateway, after what the tape has."""
    headers = {"Last-Event-ID": tape.last_id}
    request = client.stream("GET", f"{url}/v1/streams/{tape.job_id}", headers=headers)
    async with request as answer:
        await _record(answer, tape)


async def _record(answer: httpx2.Response, tape: Tape) -> None:

    tape.status = answer.status_code
    if answer.status_code != 200:
        tape.error = json.loads(await answer.aread())["error"]
        return
    tape.job_id = answer.headers["x-request-id"]
    event_id = ""
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line == "data: [DONE]":
            tape.done = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                tape.error = event["error"]
                return
            tape.last_id = event_id or tape.last_id
            for choice in event["choices"]:
                if choice["delta"].get("content"):
                    tape.saw(choice["delta"]["content"])
                tape.finish = choice["finish_reason"] or tape.finish
