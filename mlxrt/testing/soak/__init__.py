"""A soak: clients that meet faults all the while, on a real server, and every answer checked."""

from mlxrt.testing.soak.run import SoakPlan, soak

__all__ = ["SoakPlan", "soak"]
