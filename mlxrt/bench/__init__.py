"""Benchmarks: `mlxrt bench step` and `mlxrt bench attention`."""
