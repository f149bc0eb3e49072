"""For tests and for authors of schedulers: an engine without MLX. Importing this package imports
no mlx."""

from mlxrt.testing.fake_engine import FakeEngine, FakeFaults
from mlxrt.testing.fake_model import FakeModel

__all__ = ["FakeEngine", "FakeFaults", "FakeModel"]
