"""Addresses and channels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

Token = str | Callable[[], str]
"""A token, or what answers the one to send now (called before each call, by any thread)."""
LOCAL = re.compile(r"^(unix:|localhost:|127\.\d+\.\d+\.\d+:|\[::1\]:)")
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
    token: Token | None = None,
) -> grpc.Channel:
    """Returns a channel for threads, which connects with its first call.

    Args:
        credentials: for TLS; None for none.
        token: sent with each call; None for none.

    Raises:
        ValueError: the address has neither form, or the token would cross a network in plain text.
    """
    target = target_of(address)
    if credentials is None:
        channel = grpc.insecure_channel(target, settings.options())
    else:
        channel = grpc.secure_channel(target, credentials, settings.options())
    return channel if token is None else TokenChannel(channel, _checked(token, target, credentials))


def open_aio_channel(
    address: str,
    settings: ChannelSettings = ChannelSettings(),
    credentials: grpc.ChannelCredentials | None = None,
    token: Token | None = None,
) -> grpc.aio.Channel:
    """Returns a channel for the running event loop; otherwise as `open_channel`."""
    target = target_of(address)
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, settings.options())
    else:
        channel = grpc.aio.secure_channel(target, credentials, settings.options())
    return channel if token is None else TokenChannel(channel, _checked(token, target, credentials))


def _checked(token: Token, target: str, credentials: grpc.ChannelCredentials | None) -> Token:
    if credentials is None and not LOCAL.match(target):
        raise ValueError(f"a token for {target} needs TLS: give credentials too")
    return token


class TokenChannel:
    """A channel, of threads or of asyncio, whose calls carry a token.

    An interceptor would do the same at a cost for each message of a stream.
    """

    def __init__(self, channel: Any, token: Token) -> None:
        """Takes `channel` over; what is not a call is passed on to it."""
        self._channel = channel
        self._token = token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, *method: Any, **options: Any) -> TokenCall:
        """As grpc.Channel.unary_unary."""
        return TokenCall(self._channel.unary_unary(*method, **options), self._token)

    def unary_stream(self, *method: Any, **options: Any) -> TokenCall:
        """As grpc.Channel.unary_stream."""
        return TokenCall(self._channel.unary_stream(*method, **options), self._token)

    def stream_unary(self, *method: Any, **options: Any) -> TokenCall:
        """As grpc.Channel.stream_unary."""
        return TokenCall(self._channel.stream_unary(*method, **options), self._token)

    def stream_stream(self, *method: Any, **options: Any) -> TokenCall:
        """As grpc.Channel.stream_stream."""
        return TokenCall(self._channel.stream_stream(*method, **options), self._token)


class TokenCall:
    """A multi-callable of gRPC's that adds the token to the metadata."""

    def __init__(self, method: Any, token: Token) -> None:
        """Takes `method` over."""
        self._method = method
        self._token = token

    def __call__(self, *request: Any, **options: Any) -> Any:
        """Calls, as the method itself does."""
        return self._method(*request, **self._with_token(options))

    def future(self, *request: Any, **options: Any) -> Any:
        """Calls without waiting, as the method itself does (threads only)."""
        return self._method.future(*request, **self._with_token(options))

    def _with_token(self, options: dict[str, Any]) -> dict[str, Any]:
        token = self._token if isinstance(self._token, str) else self._token()
        sent = tuple(options.pop("metadata", None) or ())
        return {**options, "metadata": (*sent, ("authorization", f"Bearer {token}"))}
