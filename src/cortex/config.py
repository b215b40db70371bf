"""The gateway's configuration, and the only module of cortex that reads the environment."""

import os
from pathlib import Path

import msgspec

from protocol import settings

DEFAULT_PATH = Path("/etc/cortex/cortex.toml")


class ConfigError(Exception):
    """Raised for a setting that cannot be used; one line for people."""


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


def load(path: Path | None) -> GatewayConfig:
    """The file's settings, or the defaults when none is named and the usual one is absent.

    Raises :class:`ConfigError`.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return GatewayConfig()
        path = DEFAULT_PATH
    try:
        return settings.load(path, GatewayConfig)
    except settings.SettingsError as error:
        raise ConfigError(str(error)) from None


def read_token(path: str) -> str:
    """A NATS token from a file; empty for no file. Raises :class:`ConfigError`."""
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the NATS token file {path} cannot be read: {error}.") from None


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
