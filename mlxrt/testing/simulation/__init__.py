"""The real server in one thread, with virtual time, a fake model, and a network and clients that
misbehave: one seed, one run."""

from mlxrt.testing.simulation.command import silence_logs, simulate
from mlxrt.testing.simulation.simulation import Report, Simulation

__all__ = ["Report", "Simulation", "silence_logs", "simulate"]
