"""Decides who may ask for what: who is an operator, which web pages are let in, who a caller is.

There are no operators' keys yet, so an operator is whoever speaks from the gateway's own machine.
Two kinds of strangers do so as well, and are told apart by what they cannot hide:

- **Web pages** in the browser of somebody on that machine. A page of another name that resolves to
  127.0.0.1 (DNS rebinding) is the gateway's own origin to the browser, but its name is in ``Host``.
  All other pages show in ``Origin`` or ``Sec-Fetch-Site``, which no page can change or leave out.
- **Proxies**, which leave one of many marks, or pass on the public name in ``Host``.

Pure: it looks at a request's head, and answers with the reason of a refusal.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from protocol.runtime.listen import is_loopback_address, plain_address

_PROXY = re.compile(
    r"via|cdn-loop|surrogate-capability|client-ip|disguised-host|remote-addr|"
    r"(true|proxy|wl-proxy|ali|wap)-client-ip|(cf|fastly|fly|akamai|incap|ngrok|tailscale)-.+|"
    r"(http-)?(x-)?forwarded\w*(-.+)?|ssl-client-.+|"
    r"x-(real|original|originating|proxy|proxied|remote|source|client|cluster|true|envoy|amzn|"
    r"amz-cf|azure|arr|appengine|appgw|cloud|gfe|haproxy|nginx|traefik|varnish|vercel|nf|cdn|edge|"
    r"sucuri|iinfo|ssl|tls|host|scheme|protocol|server-name|url-scheme|rewrite|tailscale|bluecoat|"
    r"squid|cache|lb|ingress|sozu|akamai|fastly|cf)\w*(-.+)?"
)
"""Headers that proxies, load balancers and tunnels add."""
_JSON_TYPE = re.compile(r"application/([a-z0-9!#$&^_.+-]+\+)?json", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[^\[\]@/\s]+\]|[^:@/\s\[\]]+)(:\d{0,5})?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.IGNORECASE)
_CONTAINER_HOSTS = ("host.docker.internal", "host.containers.internal")
"""By which the containers of Docker and Podman call the machine that they run on."""
_STRANGE_SITES = ("cross-site", "same-site")


class Caller(NamedTuple):
    """Identity of the sender of a request."""

    tenant: str
    """Whose queue the request joins: a tenant's requests wait for each other, not for other
    tenants'."""
    owner: str
    """Hash of the presented key, which owns the stream; empty when there was no key."""


def caller_of(scope: Scope) -> Caller:
    """Identifies a caller by ``Authorization: Bearer`` or ``x-api-key``, otherwise by address. The
    key itself is not kept."""
    headers = dict(scope["headers"])
    key = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
    if key:
        owner = hashlib.sha256(key).hexdigest()[:32]
        return Caller(owner, owner)
    host = (scope.get("client") or ("unknown", 0))[0]
    return Caller(f"address {plain_address(host) or host}", "")


class Access(NamedTuple):
    """Which strangers are none."""

    hosts: Sequence[str] = ()
    """Names, beside those of loopback, by which operators and their pages reach the gateway."""
    origins: Sequence[str] = ()
    """Origins whose pages may use the API, as browsers write them; ``*`` means all."""
    is_local: bool = True
    """Whether only this machine can reach the gateway."""

    def knows_host(self, authority: str) -> bool:
        """Whether *authority* (``name:port``) is loopback, or a configured name."""
        host = host_of(authority)
        return host is not None and (is_loopback_name(host) or self._has_host(host))

    def _has_host(self, host: str | None) -> bool:
        return host in {one.lower().removesuffix(".") for one in self.hosts}

    def lets_in(self, origin: str) -> bool:
        """Whether the configuration lets the pages of an origin use the API."""
        if "*" in self.origins or origin.lower() in {one.lower() for one in self.origins}:
            return True
        found = _ORIGIN.fullmatch(origin)
        return found is not None and self._has_host(host_of(found[2]))


class Head:
    """The parts of a request's head that say who speaks."""

    def __init__(self, scope: Scope) -> None:
        self._headers = [
            (name.decode("latin-1").lower(), value.decode("latin-1").strip())
            for name, value in scope["headers"]
        ]
        client = Request(scope).client
        self.method: str = scope["method"]
        self.address = client.host if client else ""
        self.http_version: str = scope.get("http_version", "1.1")

    def all(self, name: str) -> list[str]:
        """Returns every value of a header."""
        return [value for one, value in self._headers if one == name]

    @property
    def proxy_mark(self) -> str:
        """The first header that a proxy has added; empty if there is none."""
        return next((name for name, _ in self._headers if _PROXY.fullmatch(name)), "")

    @property
    def strange_site(self) -> str:
        """What the browser says about the page that asks, if it is another site's."""
        sites = (value.lower() for value in self.all("sec-fetch-site"))
        return next((site for site in sites if site in _STRANGE_SITES), "")


def host_of(authority: str) -> str | None:
    """Returns the host of ``name:port`` or ``[v6]:port`` in lower case, without brackets, scope and
    the dot at its end; None for what is not of that form."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    return found[1].strip("[]").partition("%")[0].lower().removesuffix(".")


def has_port(authority: str) -> bool:
    """Whether ``name:port`` or ``[v6]:port`` has its port."""
    found = _AUTHORITY.fullmatch(authority)
    return found is not None and bool(found[2])


def is_loopback_name(host: str) -> bool:
    """Whether a host, as :func:`host_of` returns it, is this machine on every machine."""
    return host == "localhost" or host.endswith(".localhost") or is_loopback_address(host)


def why_not_operator(head: Head, access: Access) -> str:
    """Returns why a request does not count as the operator's; empty if it does."""
    if not is_loopback_address(head.address):
        return f"this one came from {head.address or 'an unknown address'}"
    if mark := head.proxy_mark:
        return f"this one came through a proxy, which added the header {mark!r}"
    if head.http_version == "1.0":
        return "this one uses HTTP/1.0, as proxies do (send HTTP/1.1)"
    hosts = head.all("host")
    if len(hosts) != 1 or not access.knows_host(hosts[0]):
        return (
            f"this one is for the host {', '.join(hosts)[:200]!r}, which may be a web page's name "
            "or a proxy's (use 127.0.0.1 or localhost; or, if only operators use that name, add it "
            "to hosts in [gateway])"
        )
    for origin in head.all("origin"):
        found = _ORIGIN.fullmatch(origin)
        if found is None or not access.knows_host(found[2]):
            return f"this one was sent by a web page of {origin[:200]!r}"
    if site := head.strange_site:
        return f"this one was sent by a web page of another origin (Sec-Fetch-Site: {site})"
    return ""


def why_not_page(head: Head, access: Access) -> str:
    """Returns why a web page may not send this request to the API; empty if it may, or if no web
    page did.

    Programs send no ``Origin``, under whatever name they reach the gateway. A page of the gateway's
    own origin is let in, except under a strange name on a gateway that only its own machine
    reaches: such a page was rebound. Over https it cannot be, because the gateway speaks none: a
    proxy does, and has shown a certificate for that name.
    """
    origins = head.all("origin")
    for origin in origins:
        if not (access.lets_in(origin) or _is_own(origin, head.all("host"), access)):
            return _strange_page(origin)
    is_navigation = head.method == "GET" and "navigate" in head.all("sec-fetch-mode")
    if head.strange_site and not origins and not is_navigation:
        return _strange_page("another site")
    return ""


def _is_own(origin: str, hosts: list[str], access: Access) -> bool:
    """Whether a page is the gateway's own, as far as *hosts* (the values of ``Host``) can say."""
    found = _ORIGIN.fullmatch(origin)
    if found is None or len(hosts) != 1:
        return False
    name = host_of(hosts[0])
    if name is None:
        return False
    is_same = found[2].lower() == hosts[0].lower()
    if found[1].lower() == "https":
        # Some proxies pass on the name without the port, or with their own. To loopback a page of
        # any port can speak directly, and its browser sends the gateway's port.
        is_direct = is_loopback_name(name) and has_port(hosts[0])
        return is_same or (name == host_of(found[2]) and not is_direct)
    is_known = access.knows_host(hosts[0]) or plain_address(name) is not None
    return is_same and (is_known or not access.is_local)


def why_not_scraper(head: Head, access: Access) -> str:
    """Returns why a request may not read the metrics; empty if it may.

    Where only its own machine reaches the gateway, they are served under its own names, and under
    those by which containers call their host: nobody outside can have these resolved, so no page
    was rebound to them. They make nobody an operator, because every container has them.
    """
    if not access.is_local:
        return ""
    for authority in head.all("host"):
        if not (access.knows_host(authority) or host_of(authority) in _CONTAINER_HOSTS):
            return (
                f"The metrics are not served under the host {authority[:200]!r}. Use 127.0.0.1 or "
                "localhost. If only operators use that name, it can be added to hosts in [gateway] "
                "of cortex.toml, which makes operators of all who use it on this machine."
            )
    return ""


def _strange_page(origin: str) -> str:
    return (
        f"This request was sent by a web page of {origin[:200]!r}, which may not use this gateway. "
        "If it should, add its origin (such as 'https://chat.example') to cors_origins in "
        "[gateway] of cortex.toml."
    )


def why_not_json(head: Head, *, may_be_absent: bool) -> str:
    """Returns why a body is not JSON by its type; empty if it is.

    Web pages can send the other types, and none, to any address without asking it first.
    """
    if head.method not in ("POST", "PUT", "PATCH"):
        return ""
    types = head.all("content-type")
    if (may_be_absent and not types) or (types and all(_is_json(value) for value in types)):
        return ""
    found = f"not {types[0][:100]!r}" if types else "but the request has none"
    return (
        f"Content-Type: it must be application/json, {found}. With curl, add -H 'Content-Type: "
        "application/json'."
    )


def _is_json(value: str) -> bool:
    return _JSON_TYPE.fullmatch(value.partition(";")[0].strip()) is not None
