"""Who counts as an operator, and which web pages are let in: every kind of stranger."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.api.access import (
    Access,
    Head,
    host_of,
    is_loopback_name,
    why_not_json,
    why_not_operator,
    why_not_page,
    why_not_scraper,
)

LOCAL_NAMES = ("localhost", "LOCALHOST", "a.b.localhost", "localhost.", "127.0.0.1", "127.9.8.7")
LOCAL_HOSTS = (*LOCAL_NAMES, "[::1]", "[::ffff:127.0.0.1]", "[::1%25lo]")
LOCAL_ADDRESSES = ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "::ffff:127.0.0.1%lo")
STRANGE_NAMES = (
    "evil.example",
    "localhost.evil.example",
    "evillocalhost",
    "127.0.0.1.evil.example",
    "0.0.0.0",
    "127.1",
    "2130706433",
    "0x7f000001",
    "10.0.0.7",
    "[::]",
    "[2001:db8::1]",
    "localhost@evil.example",
    "evil.example#localhost",
    "local host",
    "",
    ":31313",
    "::1",
)
PROXY_MARKS = (
    *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
    *("X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded-Whatever", "X-Real-IP"),
    *("CF-Connecting-IP", "CF-Ray", "CDN-Loop", "True-Client-IP", "X-Client-IP", "Client-IP"),
    *("X-Cluster-Client-IP", "Fastly-Client-IP", "X-Original-URL", "X-Original-Forwarded-For"),
    *("X-Envoy-External-Address", "X-Amzn-Trace-Id", "Fly-Client-IP", "X-ProxyUser-Ip"),
    *("X-Azure-ClientIP", "X-ARR-SSL", "X-Cloud-Trace-Context", "X-Vercel-Id", "X-Varnish"),
    *("WL-Proxy-Client-IP", "Tailscale-User-Login", "X-Scheme", "X-Host", "X-Originating-IP"),
)
LOCAL = Access()
PORTS = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
SCHEMES = st.sampled_from(("http", "https"))
LABEL = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=8)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


def head(
    *headers: tuple[str, str],
    client: str = "127.0.0.1",
    method: str = "POST",
    version: str = "1.1",
) -> Head:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "headers": raw, "http_version": version}
    return Head({**scope, "client": (client, 5)})


def is_operator(*headers: tuple[str, str], access: Access = LOCAL, **more: str) -> bool:
    return not why_not_operator(head(*headers, **more), access)


@given(st.sampled_from(LOCAL_HOSTS), PORTS, st.sampled_from(LOCAL_ADDRESSES))
def test_this_machine_is_an_operator(host: str, port: str, client: str) -> None:
    assert is_operator(("Host", host + port), client=client)
    own = ("Origin", f"http://{host}{port}")
    assert is_operator(("Host", host + port), own, ("Sec-Fetch-Site", "same-origin"))
    assert is_operator(("Host", host + port), ("Sec-Fetch-Site", "none"))


@given(st.one_of(st.sampled_from(STRANGE_NAMES), NAME), PORTS, SCHEMES)
def test_a_rebound_page_is_not(name: str, port: str, scheme: str) -> None:
    if is_loopback_name(host_of(name) or ""):
        return
    assert not is_operator(("Host", name + port))
    assert not is_operator(("Host", name + port), ("Origin", f"{scheme}://{name}{port}"))
    assert not is_operator(("Host", "localhost"), ("Origin", f"{scheme}://{name}{port}"))
    assert not is_operator(("Host", "localhost"), ("Host", name + port))


@pytest.mark.parametrize("mark", PROXY_MARKS)
def test_what_a_proxy_has_marked_is_not(mark: str) -> None:
    for name in (mark, mark.lower(), mark.upper()):
        assert not is_operator(("Host", "localhost"), (name, "x"))
        assert not is_operator(("Host", "localhost"), (name, ""))


@given(st.text(string.ascii_lowercase + string.digits + "-", max_size=12))
def test_whatever_begins_as_forwarded_is_a_mark(rest: str) -> None:
    assert not is_operator(("Host", "localhost"), (f"X-Forwarded-{rest}x", "1"))


@pytest.mark.parametrize(
    "header",
    [
        *("Accept", "Accept-Encoding", "User-Agent", "Content-Length", "Content-Type"),
        *("Connection", "Cache-Control", "Authorization", "X-Api-Key", "X-Request-Id", "Cookie"),
        *("Traceparent", "Viable", "Referer", "X-Stainless-Lang", "X-App", "Last-Event-ID"),
    ],
)
def test_what_programs_send_is_no_mark(header: str) -> None:
    assert is_operator(("Host", "localhost"), (header, "x"))


@pytest.mark.parametrize(
    "client", ["10.0.0.7", "::ffff:10.0.0.7", "fe80::1%lo", "2001:db8::1", "", "unknown", "0.0.0.0"]
)
def test_another_machine_is_not(client: str) -> None:
    assert not is_operator(("Host", "localhost"), client=client)


def test_without_a_host_nobody_is() -> None:
    assert not is_operator()
    assert not is_operator(version="1.0")
    assert not is_operator(("Host", "127.0.0.1:31313"), version="1.0")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site"])
@pytest.mark.parametrize("mode", ["navigate", "cors", "no-cors", "websocket"])
def test_what_a_browser_says_of_another_site_is_not(site: str, mode: str) -> None:
    assert not is_operator(
        ("Host", "localhost"), ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)
    )


@pytest.mark.parametrize("origin", ["null", "file://", "evil.example", "http://", "", "https://*"])
def test_a_page_without_a_name_is_nobody(origin: str) -> None:
    assert not is_operator(("Host", "localhost"), ("Origin", origin))
    access = Access(origins=("https://chat.example",))
    assert why_not_page(head(("Host", "localhost"), ("Origin", origin)), access)


@given(PORTS)
def test_a_configured_name_is_this_machine(port: str) -> None:
    access = Access(hosts=("Gpu-Box.lan", "10.0.0.7"), origins=("https://chat.example",))
    for name in ("gpu-box.lan", "GPU-BOX.LAN.", "10.0.0.7"):
        assert is_operator(("Host", name + port), access=access)
        assert is_operator(("Host", name + port), ("Origin", f"http://{name}{port}"), access=access)
    assert not is_operator(("Host", f"x.gpu-box.lan{port}"), access=access)
    assert not is_operator(("Host", "localhost"), ("Origin", "https://chat.example"), access=access)


def test_a_refusal_says_what_to_do() -> None:
    for request, words in (
        (head(("Host", "evil.example:1")), ("'evil.example:1'", "hosts in [gateway]", "127.0.0.1")),
        (head(("Host", "localhost"), ("Via", "x")), ("proxy", "'via'")),
        (head(("Host", "localhost"), client="10.0.0.7"), ("10.0.0.7",)),
        (head(("Host", "localhost"), version="1.0"), ("HTTP/1.0", "HTTP/1.1")),
    ):
        why = why_not_operator(request, Access())
        assert all(word in why for word in words), why
    why = why_not_page(head(("Host", "a"), ("Origin", "http://b")), Access())
    assert "'http://b'" in why
    assert "cors_origins" in why
    assert len(why_not_page(head(("Host", "a"), ("Origin", "x" * 9000)), Access())) < 600


@given(NAME, PORTS, st.booleans())
def test_programs_are_let_in_under_any_name(name: str, port: str, is_local: bool) -> None:
    access = Access(is_local=is_local)
    for host in (name, "host.docker.internal", "llm.example.com", "192.168.1.5", "[2001:db8::1]"):
        assert not why_not_page(head(("Host", host + port), ("X-Forwarded-For", "1.2.3.4")), access)
        assert not why_not_page(head(("Host", host + port), client="10.0.0.7"), access)
    assert not why_not_page(head(version="1.0"), access)


@given(NAME, PORTS, SCHEMES, st.booleans())
def test_pages_of_other_origins_are_not(name: str, port: str, scheme: str, is_local: bool) -> None:
    access = Access(is_local=is_local)
    for host in ("127.0.0.1:31313", "localhost:31313", "gpu-box:31313", "llm.example"):
        for origin in (f"{scheme}://{name}{port}", "http://localhost:3000", "null"):
            if origin.partition("//")[2] != host:
                assert why_not_page(head(("Host", host), ("Origin", origin)), access), origin


@given(NAME, PORTS)
def test_a_page_of_the_gateways_own_origin(name: str, port: str) -> None:
    def let_in(scheme: str, host: str, *, is_local: bool, hosts: tuple[str, ...] = ()) -> bool:
        request = head(("Host", host), ("Origin", f"{scheme}://{host}"))
        return not why_not_page(request, Access(hosts=hosts, is_local=is_local))

    host = name + port
    is_plain = not (host_of(host) or "").endswith("localhost")
    for own in ("127.0.0.1", "localhost", "[::1]", "192.168.1.5", "ui.localhost"):
        assert let_in("http", own + port, is_local=True)
        assert let_in("http", own + port, is_local=False)
    assert let_in("https", host, is_local=True), "only a proxy can have spoken https"
    assert let_in("http", host, is_local=False)
    assert let_in("http", host, is_local=True, hosts=(name,))
    if is_plain and not name.replace(".", "").isdigit():
        assert not let_in("http", host, is_local=True), "its name was rebound"


@given(NAME, PORTS, PORTS, st.booleans())
def test_a_page_of_the_gateways_own_https_name_on_any_port(
    name: str, port: str, passed_on: str, is_local: bool
) -> None:
    """A proxy may pass on the name without the port, or with its own."""
    access = Access(is_local=is_local)
    page = ("Origin", f"https://{name}{port}")
    for host in (name, name.upper(), f"{name}."):
        assert not why_not_page(head(("Host", host + passed_on), page), access)
    for other in (f"x.{name}", f"{name}.x", f"x{name}", "", f"x@{name}"):
        assert why_not_page(head(("Host", other + passed_on), page), access)
    assert why_not_page(head(page), access)
    assert why_not_page(head(("Host", name), ("Host", name), page), access)
    for own in ("127.0.0.1", "localhost", "[::1]", "ui.localhost"):
        page_of_own = head(("Host", f"{own}{passed_on}"), ("Origin", f"https://{own}{port}"))
        is_let_in = not passed_on or passed_on == port
        assert bool(why_not_page(page_of_own, access)) is not is_let_in, "any port may be anybody's"
    if port != passed_on:
        plain = ("Origin", f"http://{name}{port}")
        assert why_not_page(head(("Host", name + passed_on), plain), access), "may be anybody's"


@given(NAME, PORTS, st.booleans())
def test_metrics_are_read_from_containers_too(name: str, port: str, is_local: bool) -> None:
    access = Access(hosts=("gpu-box.lan",), is_local=is_local)

    def why(host: str) -> str:
        return why_not_scraper(head(("Host", host), method="GET"), access)

    containers = ("host.docker.internal", "host.containers.internal", "HOST.Docker.Internal.")
    for host in (*LOCAL_HOSTS, *containers, "gpu-box.lan"):
        assert not why(host + port)
        assert host == "gpu-box.lan" or host in LOCAL_HOSTS or not is_operator(("Host", host))
    for strange in ("docker.internal", "x.host.docker.internal", "host.docker.internal.x", name):
        if is_loopback_name(host_of(strange) or ""):
            continue
        assert bool(why(strange + port)) is is_local
        both = head(("Host", "localhost"), ("Host", strange + port), method="GET")
        assert bool(why_not_scraper(both, access)) is is_local
    assert not why_not_scraper(head(method="GET", version="1.0"), access)


@given(NAME, PORTS, SCHEMES)
def test_allowed_origins_are_let_in(name: str, port: str, scheme: str) -> None:
    origin = f"{scheme}://{name}{port}"
    request = head(("Host", "localhost"), ("Origin", origin), ("Sec-Fetch-Site", "cross-site"))
    assert not why_not_page(request, Access(origins=(origin,)))
    assert not why_not_page(request, Access(origins=("*",)))
    assert why_not_page(request, Access(origins=(f"{scheme}://other.{name}{port}",)))
    assert why_not_page(request, Access(origins=(f"{origin}1", origin[:-1])))


def test_what_browsers_send_without_an_origin() -> None:
    def is_refused(method: str, mode: str, site: str) -> bool:
        marks = (("Sec-Fetch-Mode", mode), ("Sec-Fetch-Site", site))
        return bool(why_not_page(head(("Host", "localhost"), *marks, method=method), Access()))

    assert is_refused("GET", "no-cors", "cross-site")
    assert is_refused("GET", "no-cors", "same-site")
    assert is_refused("POST", "navigate", "cross-site")
    assert not is_refused("GET", "navigate", "cross-site"), "somebody has followed a link"
    assert not is_refused("GET", "cors", "same-origin")
    assert not is_refused("GET", "navigate", "none")


JSON_TYPES = (
    *("application/json", "APPLICATION/JSON", "application/json; charset=utf-8"),
    *("application/json;charset=UTF-8", "application/problem+json", "application/vnd.api+JSON"),
    *(" application/json ", "application/json ; x=y", "application/json; charset=iso-8859-1"),
)
OTHER_TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""),
    *("text/plain; application/json", "application/jsonx", "xapplication/json", "text/html"),
    *(
        "application/octet-stream",
        "application/json, text/plain",
        "*/*",
        "json",
        "application/+json",
    ),
    *("text/plain;charset=application/json", "application/x-ndjson"),
)


@pytest.mark.parametrize("may_be_absent", [True, False])
def test_bodies_are_json_by_their_type(may_be_absent: bool) -> None:
    def why(*types: str, method: str = "POST") -> str:
        headers = [("Content-Type", one) for one in types]
        return why_not_json(head(*headers, method=method), may_be_absent=may_be_absent)

    for good in JSON_TYPES:
        assert not why(good)
        for bad in OTHER_TYPES:
            assert why(bad), bad
            assert why(good, bad)
            assert why(bad, good)
            assert not why(bad, method="GET")
    assert bool(why()) is not may_be_absent
    assert "-H 'Content-Type: application/json'" in why("text/plain")
