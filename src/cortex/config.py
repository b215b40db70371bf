"""The gateway's configuration; the only module of cortex that reads the environment."""

import os
import re
from pathlib import Path

import msgspec

from cortex.placement.eviction import Strategy
from cortex.placement.options import PLACE_SECONDS
from protocol.names import InvalidName, check_host_id
from protocol.runtime.http.crowd import HttpLimits
from protocol.runtime.settings import SettingsError, load_or_default

DEFAULT_PATH = Path("/etc/cortex/cortex.toml")

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+")
"""A name, or an address of either kind."""


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[gateway]``: addresses and waits."""

    listen: str = "127.0.0.1:31313"
    """Address of the API; beyond loopback it is open to everyone who can reach it."""
    metrics_listen: str = "127.0.0.1:31314"
    cors_origins: tuple[str, ...] = ()
    """Origins (``https://chat.example``) whose web pages may use the API; ``*`` means all."""
    hosts: tuple[str, ...] = ()
    """Names, beside ``localhost``, under which operators reach the gateway on its own machine."""
    max_connections: int = HttpLimits().connections
    """How many connections clients may have together."""
    max_connections_per_address: int = HttpLimits().per_address
    """How many of them one address may have; 0 means no such bound. Never applies to loopback."""
    http2: bool = False
    """Whether HTTP/2 is spoken without TLS (h2c) as well."""
    drain_seconds: float = 30.0
    """How long running answers may take to finish after SIGTERM."""
    load_wait_seconds: float = PLACE_SECONDS
    """How long a request waits for its model's load to begin while the models beside it are in
    use."""


class NatsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[nats]``: the server to connect to."""

    url: str = "nats://127.0.0.1:4222"
    token_file: str = ""


class EvictionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[eviction]``: what is evicted or restarted, and when."""

    strategy: Strategy = Strategy.LRU
    """Which model is evicted first when memory is needed: ``lru``, the one that has been idle
    longest, or ``priority``, the one with the lowest ``residency_priority`` (of equals, the longest
    idle)."""
    defrag_after_cycles: int = 50
    """Number of loads on a node after which its older engines are restarted when they are idle, to
    free fragmented memory; 0 means never."""


class NeuronSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table ``[[neurons]]``: a node to use."""

    name: str
    """Only the named nodes are used. Without any ``[[neurons]]``, all are."""
    endpoint: str = ""
    """Has no effect: neurons are found through NATS."""


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of ``cortex.toml``."""

    gateway: GatewaySection = GatewaySection()
    nats: NatsSection = NatsSection()
    eviction: EvictionSection = EvictionSection()
    neurons: tuple[NeuronSection, ...] = ()
    models_config: str = ""
    """The file with the models' profiles; empty means ``/etc/cortex/models.toml`` if it exists."""


def load(path: Path | None) -> GatewayConfig:
    """Reads *path*, or the default file, or returns the defaults; raises ``SettingsError``."""
    found = load_or_default(path, DEFAULT_PATH, GatewayConfig)
    where = path or DEFAULT_PATH
    if found.eviction.defrag_after_cycles < 0:
        raise SettingsError(
            f"{where}: eviction.defrag_after_cycles = {found.eviction.defrag_after_cycles}: must "
            "not be negative (0 = never)."
        )
    _check_gateway(found.gateway, where)
    for neuron in found.neurons:
        try:
            check_host_id(neuron.name)
        except InvalidName as error:
            raise SettingsError(f"{where}: neurons: {error}.") from None
    return found


def _check_gateway(gateway: GatewaySection, where: Path) -> None:
    for key in ("drain_seconds", "load_wait_seconds", "max_connections_per_address"):
        if getattr(gateway, key) < 0:
            raise SettingsError(
                f"{where}: gateway.{key} = {getattr(gateway, key)}: must not be negative."
            )
    if gateway.max_connections < 1:
        raise SettingsError(
            f"{where}: gateway.max_connections = {gateway.max_connections}: must be at least 1."
        )
    for origin in gateway.cors_origins:
        if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise SettingsError(
                f"{where}: gateway.cors_origins: {origin!r} is not a web origin. Origins look like "
                '"https://chat.example:8080", without a path.'
            )
    for host in gateway.hosts:
        if not _HOST.fullmatch(host):
            raise SettingsError(
                f"{where}: gateway.hosts: {host!r} is not the name of a host. Write it as in "
                '"gpu-box.lan", without a scheme, port, path or pattern.'
            )


def default_data_dir() -> Path:
    """Returns the folder where ``cortex up`` keeps its data."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "cortex"


def nats_server_override() -> str:
    """Returns the nats-server binary that the user named; empty for none."""
    return os.environ.get("CORTEX_NATS_SERVER", "")


def child_environment(**extra: str) -> dict[str, str]:
    """Returns this process's environment with additions, for a child."""
    return {**os.environ, **extra}
