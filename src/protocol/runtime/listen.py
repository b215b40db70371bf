"""Listening sockets, opened before anything else, so that an address in use is one line for
people."""

import ipaddress
import socket

from protocol.runtime.settings import SettingsError

BACKLOG = 2048
"""The usual 100 stalls the 101st simultaneous connect for a second."""


def open_socket(address: str) -> socket.socket:
    """Opens a listening socket for ``host:port``, ``[v6]:port`` or an inherited ``fd://N``; port 0
    is any free one. Raises :class:`SettingsError` for an address that is in use or invalid."""
    if address.startswith("fd://"):
        try:
            return socket.socket(fileno=int(address.removeprefix("fd://")))
        except (OSError, ValueError):
            raise SettingsError(f"{address} is not an inherited socket.") from None
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except (OSError, ValueError, OverflowError) as error:
        listener.close()
        raise SettingsError(_why_not_bound(address, error)) from None
    return listener


def _why_not_bound(address: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return (
            f"cannot listen on {address}: {error.strerror.lower()}. "
            "Choose another address, or port 0 for any free port."
        )
    return f"cannot listen on {address!r}: it is not of the form HOST:PORT."


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """Returns the URL at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
