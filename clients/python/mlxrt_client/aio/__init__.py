"""The asyncio client: the same names and the same behaviour as the one for threads, awaited."""

from mlxrt_client.aio.client import Client
from mlxrt_client.aio.session import Session
from mlxrt_client.aio.stream import ExecuteStream

__all__ = ["Client", "ExecuteStream", "Session"]
