"""The gRPC shell: decodes and validates, hands over to the core, encodes. Importing it imports no
mlx."""

from mlxrt.exit_code import ExitCode
from mlxrt.server.app import Server, run_server, serve
from mlxrt.server.lifecycle import ServerState
from mlxrt.server.pipeline import StepPipeline
from mlxrt.server.runtime import Runtime, build_runtime

__all__ = [
    "ExitCode",
    "Runtime",
    "Server",
    "ServerState",
    "StepPipeline",
    "build_runtime",
    "run_server",
    "serve",
]
