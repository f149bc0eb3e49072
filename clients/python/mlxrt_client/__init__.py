"""Client of mlxrt: typed sessions and steps over gRPC, for a scheduler of your own."""

from mlxrt_client import aio, errors, messages, v1
from mlxrt_client.blocks import BlockAllocator
from mlxrt_client.channel import ChannelSettings
from mlxrt_client.client import Client
from mlxrt_client.errors import MlxrtError
from mlxrt_client.plan import Statistics, Token
from mlxrt_client.retry import RetryPolicy
from mlxrt_client.scheduler import Scheduler
from mlxrt_client.session import Session
from mlxrt_client.stream import ExecuteStream

__all__ = [
    "BlockAllocator",
    "ChannelSettings",
    "Client",
    "ExecuteStream",
    "MlxrtError",
    "RetryPolicy",
    "Scheduler",
    "Session",
    "Statistics",
    "Token",
    "aio",
    "errors",
    "messages",
    "v1",
]
