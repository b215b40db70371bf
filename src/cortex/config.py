"""The gateway's configuration, and the only module of cortex that reads the environment."""

import os
from pathlib import Path

import msgspec

from protocol.settings import load_or_default

DEFAULT_PATH = Path("/etc/cortex/cortex.toml")


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[gateway]``"""

    listen: str = "127.0.0.1:31313"
    """Address of the API; other than loopback it is open to everyone who reaches it."""
    metrics_listen: str = "127.0.0.1:31314"
    drain_seconds: float = 30.0
    """How long running answers may take to finish after SIGTERM."""


class NatsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[nats]``"""

    url: str = "nats://127.0.0.1:4222"
    token_file: str = ""


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``cortex.toml``"""

    gateway: GatewaySection = GatewaySection()
    nats: NatsSection = NatsSection()
    models_config: str = ""
    """The file with the profiles of models; empty = ``/etc/cortex/models.toml`` if there is one."""


def load(path: Path | None) -> GatewayConfig:
    """*path*, or the usual file, or the defaults; raises ``SettingsError``."""
    return load_or_default(path, DEFAULT_PATH, GatewayConfig)


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
