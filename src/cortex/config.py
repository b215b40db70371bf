"""The gateway's configuration, and the only module of cortex that reads the environment."""

import os
import re
from pathlib import Path

import msgspec

from cortex.placement.eviction import Strategy
from cortex.placement.options import PLACE_SECONDS
from protocol.names import InvalidName, check_host_id
from protocol.runtime.settings import SettingsError, load_or_default

DEFAULT_PATH = Path("/etc/cortex/cortex.toml")


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[gateway]``"""

    listen: str = "127.0.0.1:31313"
    """Address of the API; other than loopback it is open to everyone who reaches it."""
    metrics_listen: str = "127.0.0.1:31314"
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins (``https://chat.example``) may use the API; ``*`` = all pages."""
    drain_seconds: float = 30.0
    """How long running answers may take to finish after SIGTERM."""
    load_wait_seconds: float = PLACE_SECONDS
    """How long a request waits for its model's load to begin, beside others that are in use."""


class NatsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[nats]``"""

    url: str = "nats://127.0.0.1:4222"
    token_file: str = ""


class EvictionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[eviction]``"""

    strategy: Strategy = Strategy.LRU
    """Who goes first when memory is needed: ``lru``, the one that has been idle for the longest, or
    ``priority``, the lowest ``residency_priority`` (and of equals the longest idle)."""
    defrag_after_cycles: int = 50
    """After so many loads on a node, engines that have been there since before are started anew
    when they are idle, so that fragmented memory comes back; 0 = never."""


class NeuronSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[neurons]]``"""

    name: str
    """Only nodes that are named are used. Without any ``[[neurons]]``, all are."""
    endpoint: str = ""
    """Without effect: neurons are found through NATS."""


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``cortex.toml``"""

    gateway: GatewaySection = GatewaySection()
    nats: NatsSection = NatsSection()
    eviction: EvictionSection = EvictionSection()
    neurons: tuple[NeuronSection, ...] = ()
    models_config: str = ""
    """The file with the profiles of models; empty = ``/etc/cortex/models.toml`` if there is one."""


def load(path: Path | None) -> GatewayConfig:
    """*path*, or the usual file, or the defaults; raises ``SettingsError``."""
    found = load_or_default(path, DEFAULT_PATH, GatewayConfig)
    where = path or DEFAULT_PATH
    if found.eviction.defrag_after_cycles < 0:
        raise SettingsError(
            f"{where}: eviction.defrag_after_cycles = {found.eviction.defrag_after_cycles}: not "
            "below 0 (0 = never)."
        )
    for key in ("drain_seconds", "load_wait_seconds"):
        if getattr(found.gateway, key) < 0:
            raise SettingsError(
                f"{where}: gateway.{key} = {getattr(found.gateway, key)}: not below 0."
            )
    for origin in found.gateway.cors_origins:
        if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
            raise SettingsError(
                f"{where}: gateway.cors_origins: {origin!r} is no origin of web pages, which look "
                'like "https://chat.example:8080", without a path.'
            )
    for neuron in found.neurons:
        try:
            check_host_id(neuron.name)
        except InvalidName as error:
            raise SettingsError(f"{where}: neurons: {error}.") from None
    return found


def default_data_dir() -> Path:
    """Where ``cortex up`` keeps its data."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "cortex"


def nats_server_override() -> str:
    """A nats-server binary named by the user; empty for none."""
    return os.environ.get("CORTEX_NATS_SERVER", "")


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment with additions, for a child."""
    return {**os.environ, **extra}
