"""Regenerates `mlxrt_client/v1` from `protos/`, with the oldest grpcio-tools that is supported.

    python -m venv tools && tools/bin/pip install grpcio-tools==1.71.2
    tools/bin/python clients/python/generate.py

protoc writes absolute imports (`from mlxrt.v1 import ...`), which would clash with the server's
package `mlxrt`; they are made relative. Added are type stubs of the services, which protoc does not
write, and an `__init__.py` that exports every message, enum and service stub.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2

TOOLS_VERSION = "1.71.2"
CLIENT_ROOT = Path(__file__).resolve().parent
PROTO_ROOT = CLIENT_ROOT.parents[1] / "protos"
OUTPUT_ROOT = CLIENT_ROOT / "mlxrt_client" / "v1"
ABSOLUTE_IMPORT = re.compile(r"^from mlxrt\.v1 import (\w+) as (\w+)$", re.MULTILINE)
HEADER = "# Written by generate.py. Do not edit.\n"


def run_protoc(proto_root: Path, output: Path) -> descriptor_pb2.FileDescriptorSet:
    """Writes protoc's Python output below `output` and returns the descriptors, ordered by name."""
    from grpc_tools import protoc

    paths = sorted(proto_root.glob("mlxrt/v1/*.proto"))
    descriptor_path = output / "descriptors.binpb"
    arguments = [
        "protoc",
        f"--proto_path={proto_root}",
        f"--proto_path={Path(protoc.__file__).parent / '_proto'}",
        f"--python_out={output}",
        f"--pyi_out={output}",
        f"--grpc_python_out={output}",
        f"--descriptor_set_out={descriptor_path}",
        *(str(path.relative_to(proto_root)) for path in paths),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    found = descriptor_pb2.FileDescriptorSet.FromString(descriptor_path.read_bytes())
    return descriptor_pb2.FileDescriptorSet(file=sorted(found.file, key=lambda file: file.name))


def make_imports_relative(source: str) -> str:
    """Returns `source` with its imports of `mlxrt.v1` turned into imports of its own package."""
    return ABSOLUTE_IMPORT.sub(r"from . import \1 as \2", source)


def render_service_types(file: descriptor_pb2.FileDescriptorProto, owners: dict[str, str]) -> str:
    """Returns the type stub of a file's services; `owners` maps each message to its module."""

    def python_type(full_name: str) -> str:
        name = full_name.rsplit(".", 1)[-1]
        return f"{owners[name]}.{name}"

    methods = [method for service in file.service for method in service.method]
    names = {m.input_type for m in methods if not m.client_streaming}
    modules = sorted({python_type(name).split(".")[0] for name in names})
    blocks = [["from typing import Any", "", *(f"from . import {module}" for module in modules)]]
    for service in file.service:
        stub = [f"class {service.name}Stub:", "    def __init__(self, channel: Any) -> None: ..."]
        servicer = [f"class {service.name}Servicer:"]
        for method in service.method:
            stub.append(f"    {method.name}: Any")
            argument = f"request: {python_type(method.input_type)}"
            if method.client_streaming:
                argument = "request_iterator: Any"
            servicer.append(f"    def {method.name}(self, {argument}, context: Any) -> Any: ...")
        add = f"def add_{service.name}Servicer_to_server(servicer: Any, server: Any) -> None: ..."
        blocks += [stub, servicer, [add]]
    return HEADER + "\n\n".join("\n".join(block) for block in blocks) + "\n"


def render_package(descriptors: descriptor_pb2.FileDescriptorSet) -> str:
    """Returns the package's `__init__.py`, which exports every message, enum and service stub."""
    lines, names = [], []
    for file in descriptors.file:
        stem = Path(file.name).stem
        found = sorted([m.name for m in file.message_type] + [e.name for e in file.enum_type])
        services = [f"{service.name}Stub" for service in file.service]
        for module, exported in ((f"{stem}_pb2", found), (f"{stem}_pb2_grpc", services)):
            if exported:
                lines.append(f"from .{module} import (")
                lines += [f"    {name}," for name in exported]
                lines.append(")")
                names += exported
    lines += ["", "__all__ = ["] + [f'    "{name}",' for name in sorted(names)] + ["]"]
    head = '"""The messages, enums and service stubs of mlxrt.v1."""\n\n'
    return head + HEADER + "\n".join(lines) + "\n"


def main() -> None:
    """Regenerates every file, and removes those whose proto is gone."""
    found = importlib.metadata.version("grpcio-tools")
    if found != TOOLS_VERSION:
        raise SystemExit(f"grpcio-tools {TOOLS_VERSION} is needed, {found} is installed")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        descriptors = run_protoc(PROTO_ROOT, output)
        with_services = {Path(file.name).stem for file in descriptors.file if file.service}
        for old in OUTPUT_ROOT.glob("*_pb2*.py*"):
            old.unlink()
        for path in sorted((output / "mlxrt" / "v1").iterdir()):
            stem = path.stem.removesuffix("_pb2_grpc")
            if path.stem.endswith("_pb2_grpc") and stem not in with_services:
                continue
            (OUTPUT_ROOT / path.name).write_text(make_imports_relative(path.read_text()))
    owners = {m.name: f"{Path(f.name).stem}_pb2" for f in descriptors.file for m in f.message_type}
    for file in descriptors.file:
        if file.service:
            target = OUTPUT_ROOT / f"{Path(file.name).stem}_pb2_grpc.pyi"
            target.write_text(render_service_types(file, owners))
    (OUTPUT_ROOT / "__init__.py").write_text(render_package(descriptors))
    sys.stdout.write(f"{len(list(OUTPUT_ROOT.glob('*_pb2*')))} files in {OUTPUT_ROOT.name}\n")


if __name__ == "__main__":
    main()
