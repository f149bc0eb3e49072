"""Addresses to listen on: their forms, and who can reach them."""

from __future__ import annotations

import os
import re

UNIX_PATH_BYTES_MAX = 103
"""Longest path of a unix socket that every system takes, bytes."""
OFF = "off"
"""Address of a listener that there shall not be."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


def checked_address(address: str) -> str:
    """The address in gRPC's form; raises ValueError where it is none."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix://").removeprefix("unix:")
        if not path or "\0" in path or len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise ValueError(f"a unix socket's path has 1 to {UNIX_PATH_BYTES_MAX} bytes: {path!r}")
        return f"unix:{path}"
    return _checked_host_port(address)


def _checked_host_port(address: str) -> str:
    """HOST:PORT with a host that can be one; raises ValueError."""
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"{address!r} is neither unix:PATH nor HOST:PORT with a port of 0 to 65535"
        )
    if not _HOST.fullmatch(host):
        raise ValueError(f"{address!r} names no host: a name, an IPv4 address or [IPv6] is needed")
    return f"{'127.0.0.1' if host == 'localhost' else host}:{int(port)}"


def checked_side_address(address: str) -> str:
    """HOST:PORT, or OFF; raises ValueError."""
    return address if address == OFF else _checked_host_port(address)


def checked_collector(endpoint: str) -> str:
    """http://HOST:PORT or https://HOST:PORT; raises ValueError."""
    scheme, _, place = endpoint.partition("://")
    if scheme not in ("http", "https"):
        raise ValueError(f"{endpoint!r} is neither http://HOST:PORT nor https://HOST:PORT")
    return f"{scheme}://{_checked_host_port(place)}"


def is_local(address: str) -> bool:
    """Whether only processes of this machine reach `address`: a unix socket, or loopback."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0]
    octets = host.split(".")
    loopback4 = len(octets) == 4 and octets[0] == "127" and all(
        o.isascii() and o.isdigit() and int(o) < 256 for o in octets
    )  # fmt: skip
    return loopback4 or host == "[::1]"
