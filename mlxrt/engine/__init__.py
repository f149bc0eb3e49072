"""The engine: the one MLX thread. Importing this package imports no mlx."""

from mlxrt.engine.base import Engine, EngineDescription, EngineListener

__all__ = ["Engine", "EngineDescription", "EngineListener"]
