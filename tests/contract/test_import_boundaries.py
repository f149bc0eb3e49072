"""What may import what: each claim is checked in a fresh interpreter."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

CORE_FORBIDDEN = {
    "grpc",
    "mlx",
    "mlx_lm",
    "numpy",
    "time",
    "random",
    "asyncio",
    "threading",
    "datetime",
}

FILES_OF_EXTRAS = {"mlxrt/bench/attention_plots.py": "plots", "mlxrt/telemetry/tracing.py": "otel"}
"""The only files that may import what an extra brings, and which."""

PROBE = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
roots = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(roots)))
"""


def roots_imported_by(module: str) -> set[str]:
    """Returns the top-level names of all modules that importing `module` loads."""
    command = [sys.executable, "-c", PROBE, module]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_client_needs_grpcio_and_protobuf_only(repository: Path) -> None:
    paths = list(repository.glob("clients/python/mlxrt_client/**/*.py"))
    assert len(paths) > 30
    allowed = {"mlxrt_client", "grpc", "google"} | sys.stdlib_module_names
    for path in paths:
        assert imports_of(path) <= allowed, path
    # grpcio itself looks for its own companions; nobody else's package may come along.
    roots = roots_imported_by("mlxrt_client")
    assert {"mlxrt_client", "grpc", "google"} <= roots
    companions = {
        "grpc_tools",
        "grpc_health",
        "grpc_reflection",
        "grpc_status",
        "typing_extensions",
    }
    foreign = {r for r in roots if r not in allowed | companions and not r.startswith("_")}
    assert foreign <= {"cython_runtime"}


@pytest.mark.parametrize("module", ["mlxrt.server", "mlxrt.testing", "mlxrt.core", "mlxrt.config"])
def test_the_server_without_a_model_imports_no_mlx(module: str) -> None:
    roots = roots_imported_by(module)
    assert "mlxrt" in roots
    assert roots.isdisjoint({"mlx", "mlx_lm", "transformers"})


def test_every_module_of_the_server_and_of_testing_is_free_of_mlx(repository: Path) -> None:
    paths = [*repository.glob("mlxrt/server/**/*.py"), *repository.glob("mlxrt/testing/**/*.py")]
    assert paths
    for path in paths:
        assert imports_of(path).isdisjoint({"mlx", "mlx_lm"}), path


def test_the_core_knows_no_transport_no_device_no_clock_and_no_chance(repository: Path) -> None:
    paths = list(repository.glob("mlxrt/core/**/*.py"))
    assert paths
    for path in paths:
        assert imports_of(path).isdisjoint(CORE_FORBIDDEN), path
        source = path.read_text()
        assert "__import__" not in source and "importlib" not in source, path
    assert roots_imported_by("mlxrt.core.core").isdisjoint({"grpc", "mlx", "numpy"})


def test_every_package_that_is_imported_is_declared(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    always = declared_in(project["dependencies"])
    of_extra = {
        repository / path: declared_in(project["optional-dependencies"][extra])
        for path, extra in FILES_OF_EXTRAS.items()
    }
    of_root = packages_distributions()
    for path in repository.glob("mlxrt/**/*.py"):
        declared = always | of_extra.get(path, set())
        for root in imports_of(path) - sys.stdlib_module_names - {"mlxrt"}:
            names = {name.replace("_", "-").lower() for name in of_root.get(root, [root])}
            assert names & declared, f"{path} imports {root}"


@pytest.mark.parametrize("module", ["mlxrt.server", "mlxrt.cli", "mlxrt.telemetry.tracing"])
def test_what_an_extra_brings_is_imported_where_it_is_used_alone(module: str) -> None:
    assert "opentelemetry" not in roots_imported_by(module)


def declared_in(entries: list[str]) -> set[str]:
    """Returns the names of the packages that requirements ask for."""
    return {re.split(r"[^\w-]", entry)[0] for entry in entries}


def imports_of(path: Path) -> set[str]:
    """Returns the top-level names that a file imports anywhere in it, functions included."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots
