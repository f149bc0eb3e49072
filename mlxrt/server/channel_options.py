"""Options of the gRPC server: sizes, pings, streams."""

from __future__ import annotations

_MAX_CONCURRENT_STREAMS = 1024
_KEEPALIVE_TIME_MS = 10_000
_PING_TIMEOUT_MS = 5_000
_MIN_PING_INTERVAL_MS = 5_000
_METADATA_BYTES_MAX = 16 * 1024


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """The options; both directions carry at most `max_message_bytes` a message."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", _METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", _MAX_CONCURRENT_STREAMS),
        # A stopped peer is noticed after time + timeout only if the ping's own timeout is set too;
        # it is 60 s by default.
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.http2.bdp_probe", 0),
        # Two servers on one port would share its calls at random.
        ("grpc.so_reuseport", 0),
    ]
