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
        if host == "::":  # all addresses of both kinds, whatever the system's default is
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
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
    return is_loopback_address(listener.getsockname()[0])


def is_loopback_address(text: str) -> bool:
    """Whether *text* is an address by which a machine reaches itself; False for what is not an
    address."""
    address = plain_address(text)
    return address is not None and address.is_loopback


def plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Reads an address as a socket names it: without its scope (``fe80::1%eth0``), and as IPv4
    where it is IPv4 that came through an IPv6 socket (``::ffff:127.0.0.1``). None for what is not
    an address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def address_group(peer: str) -> str:
    """Returns what counts as one client: an IPv4 address, or the /64 of an IPv6 one, which a
    single host usually has for itself. Empty for loopback."""
    address = plain_address(peer)
    if address is None:
        return peer
    if address.is_loopback:
        return ""
    if address.version == 6:
        return f"{int(address) >> 64:x}::/64"
    return str(address)


def url_of(listener: socket.socket) -> str:
    """Returns the URL at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    address = plain_address(host)
    if address is not None:
        # A socket on :: takes IPv4 as well, and there may be no ::1.
        host = "127.0.0.1" if address.is_unspecified else str(address)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
