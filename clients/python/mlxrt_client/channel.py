"""Addresses and channels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc

HOST_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):\d{1,5}$")


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """How a channel finds out that its peer is gone, and how large a message may be."""

    keepalive_time_ms: int = 20_000
    """Time without traffic, in an open call, after which the peer is asked for a sign of life."""

    keepalive_timeout_ms: int = 5_000
    """Time after which a peer that gives none is taken for dead."""

    message_bytes_max: int = 64 * 1024 * 1024
    """Largest message received; the server declares the largest that it receives in its Limits."""

    def options(self) -> list[tuple[str, int]]:
        """Returns them as options of a gRPC channel."""
        return [
            ("grpc.keepalive_time_ms", self.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.http2.ping_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.max_receive_message_length", self.message_bytes_max),
            ("grpc.max_send_message_length", self.message_bytes_max),
            # Repeats are this library's own: it knows which step number they belong to.
            ("grpc.enable_retries", 0),
            # Connect anew soon after a restart: the library's own default waits up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.use_local_subchannel_pool", 1),
        ]


def target_of(address: str) -> str:
    """Returns the gRPC target for `address`: `unix:/path/of/socket` or `host:port`.

    Raises:
        ValueError: the address has neither form.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    if HOST_PORT.match(address):
        return address
    raise ValueError(f"address {address!r} is neither unix:/path nor host:port")


def open_channel(
    address: str,
    settings: ChannelSettings = ChannelSettings(),
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.Channel:
    """Returns a channel for threads, which connects with its first call; TLS needs credentials."""
    if credentials is None:
        return grpc.insecure_channel(target_of(address), settings.options())
    return grpc.secure_channel(target_of(address), credentials, settings.options())


def open_aio_channel(
    address: str,
    settings: ChannelSettings = ChannelSettings(),
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """Returns a channel for the running event loop; otherwise as `open_channel`."""
    if credentials is None:
        return grpc.aio.insecure_channel(target_of(address), settings.options())
    return grpc.aio.secure_channel(target_of(address), credentials, settings.options())
