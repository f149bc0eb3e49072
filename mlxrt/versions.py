"""Versions of mlxrt and of what it stands on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("mlxrt", "mlxrt-client", "mlx", "mlx-lm", "numpy", "grpcio", "protobuf")


@cache
def own_version() -> str:
    """Version of mlxrt."""
    try:
        return version("mlxrt")
    except PackageNotFoundError:
        return "0+unknown"


def installed_versions() -> dict[str, str]:
    """Version by package; says so where one is not installed but imported from a source tree."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "from a source tree"
    return versions
