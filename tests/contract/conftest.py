"""Where the contract is, and its descriptor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

REPOSITORY = Path(__file__).resolve().parents[2]
# The tools of this very environment, whether or not it is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def contract(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The descriptors that protos/ gives now, comments included, by file name."""
    path = tmp_path_factory.mktemp("contract") / "contract.binpb"
    subprocess.run(["buf", "build", "protos", "-o", str(path)], cwd=REPOSITORY, check=True)
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    return {file.name: file for file in files if file.name.startswith("mlxrt/")}
