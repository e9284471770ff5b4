"""Where a server listens. It imports nothing heavy: an address that cannot be had is told before
a model is loaded."""

from __future__ import annotations

import ipaddress
import socket

from allmem.errors import AllMemError, first_line

__all__ = ["address", "bind", "is_local"]


def bind(host: str, port: int) -> socket.socket:
    """A socket for a server; port 0 takes a free one.

    Raises:
        AllMemError: if the address cannot be had.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
    except (OSError, OverflowError, UnicodeError) as error:
        raise AllMemError(
            f"cannot listen at {host}:{port}: {first_line(error)}; choose another --host or --port"
        ) from error
    return sock


def address(sock: socket.socket) -> str:
    """Where clients find it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(sock: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback
