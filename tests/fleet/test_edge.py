"""Every route of the gateway under every kind of stranger, over HTTP."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from cortex.api import body_budget
from cortex.api.access import Access
from cortex.api.endpoints.admin import Admin
from cortex.api.guards import ForOperators, ForPrograms, ForScrapers
from cortex.app import make_app, make_metrics_app
from cortex.gateway import Gateway
from protocol.runtime.http_server import http_server
from protocol.runtime.listen import is_loopback, open_socket, url_of
from tests.cortex.api.test_access import JSON_TYPES, LOCAL_HOSTS, OTHER_TYPES, PROXY_MARKS
from tests.cortex.api.test_access import STRANGE_NAMES as STRANGERS
from tests.support.fleet import PAGE, TestFleet, chat_body, running_fleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script

OPEN = {"/health", "/ready", "/version", "/openapi.json", "/"}
JSON = {"content-type": "application/json"}
ORIGINS = (
    *("http://evil.example", "https://evil.example", "http://localhost:3000", "null", "file://"),
    *("http://127.0.0.1:1", "https://chat.example.evil.example", f"{PAGE}:8443", "app://x"),
)


def routes(gateway: Gateway, guard: type | None) -> list[tuple[str, str]]:
    """Methods and paths of those that a guard stands before."""
    found = []
    for route in make_app(gateway, "").routes:
        assert isinstance(route, Route)
        is_it = isinstance(route.endpoint, guard) if guard else route.path in OPEN
        if is_it:
            path = route.path.replace("{node}", "n1").replace("{model:path}", "x")
            path = path.replace("{job_id}", "x").replace("{request_id}", "x")
            assert "{" not in path
            method = "POST" if "POST" in (route.methods or ()) else "GET"
            found.append((method, path))
    return found


async def test_every_route_has_its_guard(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        operators = routes(fleet.gateway, ForOperators)
        programs = routes(fleet.gateway, ForPrograms)
        assert {path for _, path in routes(fleet.gateway, None)} == OPEN
        everything = len(make_app(fleet.gateway, "").routes)
        assert len(operators) + len(programs) + len(OPEN) == everything
        assert {"/fleet", "/models/load", "/reload", "/nodes/n1/drain", "/requests/x"} <= {
            path for _, path in operators
        }
        verbs = [name for name in vars(Admin) if not name.startswith("_")]
        assert len([path for method, path in operators if method == "POST"]) == len(verbs)


async def asked(
    fleet: TestFleet, method: str, path: str, headers: dict[str, str] | list[tuple[str, str]]
) -> httpx2.Response:
    body = b"{}" if method == "POST" else b""
    return await fleet.client.request(method, path, content=body, headers=headers)


async def test_no_stranger_gives_orders(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        own = fleet.url.removeprefix("http://")
        port = own.rpartition(":")[2]
        strangers: list[dict[str, str]] = [{mark: "10.0.0.7"} for mark in PROXY_MARKS]
        for name in STRANGERS:
            if name and name.isascii() and " " not in name:
                strangers += [{"host": f"{name}:{port}"}, {"host": name}]
                strangers.append({"host": name, "origin": f"http://{name}"})
        pages = [one for one in (*ORIGINS, PAGE) if "localhost" not in one and "127." not in one]
        strangers += [{"origin": origin} for origin in pages]
        strangers += [{"sec-fetch-site": site} for site in ("cross-site", "same-site")]
        for method, path in routes(fleet.gateway, ForOperators):
            for headers in strangers:
                answer = await asked(fleet, method, path, {**JSON, **headers})
                assert answer.status_code == 403, (path, headers)
                error = answer.json()["error"]
                assert error["type"] == "permission_error"
                assert "own machine only" in error["message"]
            if method == "POST":
                for other in OTHER_TYPES:
                    refused = await asked(fleet, method, path, {"content-type": other})
                    assert refused.status_code == 400, (path, other)
                    assert "application/json" in refused.json()["error"]["message"]
                assert (await asked(fleet, method, path, {})).status_code == 400


async def test_this_machine_gives_orders_under_all_its_names(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        port = fleet.url.rpartition(":")[2]
        for method, path in routes(fleet.gateway, ForOperators):
            if path == "/fleet/events":
                continue  # it has no end
            for host in LOCAL_HOSTS:
                own = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}", **JSON}
                answer = await asked(fleet, method, path, own)
                assert answer.status_code not in (403, 415), (path, host, answer.text)


async def test_a_proxy_without_marks_speaks_an_older_http(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        host, port = fleet.url.removeprefix("http://").split(":")
        for method, path in routes(fleet.gateway, ForOperators):
            for line in (f"Host: {host}:{port}\r\n", ""):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"{method} {path} HTTP/1.0\r\n{line}\r\n".encode())
                assert (await reader.read()).startswith(b"HTTP/1.1 403"), path
                writer.close()


async def test_pages_use_inference_only_where_they_are_allowed(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        own = fleet.url.removeprefix("http://")
        rebound = own.replace("127.0.0.1", "evil.example")
        for method, path in routes(fleet.gateway, ForPrograms):
            is_theirs = "messages" in path

            async def status(method: str = method, path: str = path, **headers: str) -> int:
                sent = {name.replace("_", "-"): value for name, value in headers.items()}
                answer = await asked(fleet, method, path, {**JSON, **sent})
                if answer.status_code == 403:
                    found = answer.json()
                    assert found["error"]["type"] == "permission_error"
                    assert ("type" in found) == ("messages" in path), path
                    assert "cors_origins" in found["error"]["message"]
                return answer.status_code

            for origin in ORIGINS:
                assert await status(origin=origin) == 403, (path, origin)
            assert await status(host=rebound, origin=f"http://{rebound}") == 403, "rebound"
            assert await status(sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
            for friend in (
                {},
                {"origin": PAGE, "sec_fetch_site": "cross-site"},
                {"origin": f"http://{own}", "sec_fetch_site": "same-origin"},
                {"host": "localhost:1", "origin": "http://localhost:1"},
                {"host": "chat.example.com", "origin": "https://chat.example.com"},
                {"host": "chat.example.com", "x_forwarded_for": "10.0.0.7", "via": "1.1 x"},
                {"host": "host.docker.internal:31313"},
                {"host": "gpu-box.lan"},
            ):
                assert await status(**friend) not in (403, 415), (path, friend)
            assert is_theirs == ("/messages" in path)


async def test_bodies_of_inference_are_json(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        for method, path in routes(fleet.gateway, ForPrograms):
            if method == "GET":
                continue
            for other in OTHER_TYPES:
                answer = await asked(fleet, method, path, {"content-type": other})
                assert answer.status_code == 415, (path, other)
                found = answer.json()
                assert found["error"]["type"] == "invalid_request_error"
                assert ("type" in found) == ("messages" in path)
                assert "-H 'Content-Type: application/json'" in found["error"]["message"]
            for good in (*({"content-type": one.strip()} for one in JSON_TYPES), {}):
                assert (await asked(fleet, method, path, good)).status_code == 400, (path, good)
            both = [("content-type", "application/json"), ("content-type", "text/plain")]
            assert (await asked(fleet, method, path, both)).status_code == 415


async def test_everybody_asks_how_it_is(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        for headers in ({"host": "evil.example"}, {"origin": "null"}, {"via": "x"}):
            for path in OPEN:
                assert (await fleet.client.get(path, headers=headers)).status_code in (200, 503)


@contextlib.asynccontextmanager
async def served(app: Any, address: str) -> AsyncIterator[str]:
    listener = open_socket(address)
    async with http_server(app, listener, drain_seconds=0.1):
        yield url_of(listener)


async def test_metrics_are_not_read_by_a_rebound_page(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet, httpx2.AsyncClient() as client:
        for access, host, status in (
            (Access(), "127.0.0.1:31314", 200),
            (Access(), "host.docker.internal:31314", 200),
            (Access(), "evil.example", 403),
            (Access(hosts=("gpu-box.lan",)), "gpu-box.lan:31314", 200),
            (Access(is_local=False), "anything.lan", 200),
        ):
            app = make_metrics_app(fleet.gateway, access)
            (route,) = app.routes
            assert isinstance(route, Route)
            assert isinstance(route.endpoint, ForScrapers)
            async with served(app, "127.0.0.1:0") as url:
                answer = await client.get(f"{url}/metrics", headers={"host": host})
                assert answer.status_code == status, host


async def test_a_listener_on_all_addresses_knows_its_own_machine(nats: NatsServer) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with running_fleet(nats) as fleet, httpx2.AsyncClient() as client:
        async with served(make_app(fleet.gateway, ""), "[::]:0") as url:
            assert url.startswith("http://127.0.0.1:")
            port = url.rpartition(":")[2]
            for host in ("127.0.0.1", "[::1]", "localhost"):
                answer = await client.get(f"http://{host}:{port}/fleet")
                assert answer.status_code == 200, answer.text
        listener = open_socket("[::ffff:127.0.0.1]:0")
        assert is_loopback(listener)
        listener.close()


async def test_orders_are_short(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        for method, path in routes(fleet.gateway, ForOperators):
            if method == "POST":
                answer = await fleet.client.post(path, content=b" " * (2 << 20), headers=JSON)
                assert answer.status_code == 413, path
                assert "1 MiB" in answer.json()["error"]["message"]


async def test_who_leaves_in_the_middle_of_a_body_leaves_no_trace(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_fleet(nats) as fleet:
        host, port = fleet.url.removeprefix("http://").split(":")
        every = [*routes(fleet.gateway, ForOperators), *routes(fleet.gateway, ForPrograms)]
        for method, path in every:
            if method == "POST":
                _, writer = await asyncio.open_connection(host, int(port))
                head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: 100000\r\n\r\n{{".encode())
                await writer.drain()
                await asyncio.sleep(0.01)
                writer.transport.abort()
        await asyncio.sleep(0.1)
        assert (await fleet.client.get("/health")).status_code == 200
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/models/load"])
async def test_a_body_that_drips_is_ended(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("cortex.api.http.BODY_SECONDS", 0.5)
    async with running_fleet(nats) as fleet:
        host, port = fleet.url.removeprefix("http://").split(":")
        for framing in ("Content-Length: 100", "Transfer-Encoding: chunked"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"{framing}\r\n\r\n".encode()
            )

            async def drip(
                out: asyncio.StreamWriter = writer,
                drop: bytes = b"1\r\n \r\n" if "chunked" in framing else b" ",
            ) -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        out.write(drop)
                        await out.drain()
                        await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            async with asyncio.timeout(3):
                answer = await reader.read()
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 408"), answer
            assert b"too slowly" in answer


async def test_large_bodies_share_and_small_ones_pass(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_budget.BodyBudget.__init__, "__defaults__", (4 << 20,))
    async with scripted_fleet(nats, Script(lambda add: ["x"] * 3)) as fleet:
        host, port = fleet.url.removeprefix("http://").split(":")
        writers = []
        answers = []
        for _ in range(8):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            writer.write(f"{head}Content-Length: 3000000\r\n\r\n".encode() + b" " * 1_000_000)
            writers.append(writer)
            answers.append(asyncio.create_task(reader.readuntil(b"}}")))
            await writer.drain()
            await asyncio.sleep(0.05)
            assert (await fleet.chat()).status_code == 200, "a small one passes"
        await asyncio.sleep(0.3)
        done = [task.result() for task in answers if task.done()]
        assert len(done) == 4
        for answer in done:
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 2" in answer.lower()
            assert b"4 MiB" in answer
        assert [task.done() for task in answers] == [False] * 4 + [True] * 4, "the youngest"
        body = json.dumps(chat_body("Hi")).encode()
        for task, writer in zip(answers[:1], writers[:1], strict=True):
            writer.write(b" " * (2_000_000 - len(body)) + body)
            assert (await task).startswith(b"HTTP/1.1 200"), "the oldest gets to its end"
        for task in answers:
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
