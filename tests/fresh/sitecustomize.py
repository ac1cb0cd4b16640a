"""No network but this machine's own: on PYTHONPATH, so that Python processes which tests start have none either."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

NAMES = {"", "localhost", socket.gethostname(), socket.getfqdn()}


def is_here(host: object) -> bool:
    """Whether a host's name or address is this machine's own."""
    text = host.decode() if isinstance(host, bytes) else str(host or "")
    if text in NAMES:
        return True
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse(host: object) -> None:
    """Raise where ``host`` is another machine."""
    if not is_here(host):
        raise ConnectionRefusedError(f"tests run without a network: {host} was asked for")


def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    """``connect`` or ``connect_ex`` of a socket, to this machine alone."""

    def guard(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        return connect(self, address)

    return guard


def guarded_lookup(look_up: Callable[..., Any]) -> Callable[..., Any]:
    """``getaddrinfo`` of this machine's own names alone."""

    def guard(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(host)
        return look_up(host, *args, **kwargs)

    return guard


socket.socket.connect = guarded(socket.socket.connect)  # type: ignore[method-assign]
socket.socket.connect_ex = guarded(socket.socket.connect_ex)  # type: ignore[method-assign]
socket.getaddrinfo = guarded_lookup(socket.getaddrinfo)
