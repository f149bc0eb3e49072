"""The contract's form: lint, format, comments, error table, frozen descriptor, generated stubs."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from mlxrt.errors import Reason, StatusCode

Contract = Mapping[str, descriptor_pb2.FileDescriptorProto]


def run_buf(repository: Path, *arguments: str) -> str:
    """Runs buf and returns all that it says; empty where it is content."""
    result = subprocess.run(["buf", *arguments], cwd=repository, capture_output=True, text=True)
    return result.stdout + result.stderr


def comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Leading comments by source path."""
    return {tuple(place.path): place.leading_comments for place in file.source_code_info.location}


def reason_comments(contract: Contract) -> dict[str, str]:
    """The comment of each error reason, by its name less the prefix."""
    file = contract["mlxrt/v1/error.proto"]
    notes = comments(file)
    [index] = [i for i, enum in enumerate(file.enum_type) if enum.name == "ErrorReason"]
    return {
        value.name.removeprefix("ERROR_REASON_"): notes[5, index, 2, i].strip()
        for i, value in enumerate(file.enum_type[index].value)
    }


def rpc_comments(contract: Contract) -> Iterator[tuple[str, str, str]]:
    """Service, rpc and the comments of both together."""
    for file in contract.values():
        notes = comments(file)
        for s, service in enumerate(file.service):
            for m, method in enumerate(service.method):
                yield service.name, method.name, notes[6, s, 2, m]


def test_buf_lint_is_clean(repository: Path) -> None:
    assert run_buf(repository, "lint", "protos") == ""


def test_buf_format_is_clean(repository: Path) -> None:
    assert run_buf(repository, "format", "--diff", "protos") == ""


def test_nothing_frozen_is_broken(repository: Path) -> None:
    against = "protos/releases/v1.txtpb"
    assert run_buf(repository, "breaking", "protos", "--against", against) == ""


def test_a_breaking_change_would_be_found(repository: Path, tmp_path: Path) -> None:
    changed = tmp_path / "protos"
    for path in (repository / "protos").rglob("*.proto"):
        target = changed / path.relative_to(repository / "protos")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            path.read_text().replace("uint64 step_number = 2;", "uint32 step_number = 2;")
        )
    (changed / "buf.yaml").write_text((repository / "protos/buf.yaml").read_text())
    against = "protos/releases/v1.txtpb"
    assert "step_number" in run_buf(repository, "breaking", str(changed), "--against", against)


def test_error_reasons_are_those_of_the_server(contract: Contract) -> None:
    file = contract["mlxrt/v1/error.proto"]
    [enum] = [enum for enum in file.enum_type if enum.name == "ErrorReason"]
    found = {v.name.removeprefix("ERROR_REASON_"): v.number for v in enum.value if v.number}
    assert found == {reason.name: reason.number for reason in Reason}


def test_error_comments_state_the_status_code(contract: Contract) -> None:
    notes = reason_comments(contract)
    for reason in Reason:
        assert re.split(r"\W", notes[reason.name], maxsplit=1)[0] == reason.code.name, reason


def test_error_comments_state_a_remedy(contract: Contract) -> None:
    for name, note in reason_comments(contract).items():
        sentences = [s for s in re.split(r"\.\s", note) if s]
        assert name == "UNSPECIFIED" or len(sentences) >= 3, f"{name}: code, cause, remedy"


def test_rpc_comments_list_statuses_that_exist_with_their_reasons(contract: Contract) -> None:
    codes = {code.name for code in StatusCode} - {"OK"}
    seen = set()
    for service, rpc, note in rpc_comments(contract):
        assert note.strip(), f"{service}.{rpc}"
        for line in re.findall(r"^ *- (.+(?:\n {3,}.+)*)", note, re.MULTILINE):
            code = None
            for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", line):
                if word in codes:
                    code = word
                elif word in Reason.__members__ and code is not None:
                    assert Reason[word].code.name == code, f"{service}.{rpc}: {word} is no {code}"
                    seen.add(word)
    assert {"NO_FREE_BLOCKS", "STEP_STALE", "EPOCH_STALE", "FEATURE_UNSUPPORTED"} <= seen


@pytest.mark.parametrize("service", ["SessionService", "ExecutionService"])
def test_every_rpc_says_how_it_fails(contract: Contract, service: str) -> None:
    codes = {code.name for code in StatusCode} - {"OK"}
    for found, rpc, note in rpc_comments(contract):
        if found == service:
            named = codes & set(re.findall(r"[A-Z_]+", note))
            assert named or "Same statuses as" in note, f"{service}.{rpc} lists no status"


def test_stubs_are_current(contract: Contract) -> None:
    for name, expected in contract.items():
        module = "mlxrt_client.v1." + Path(name).stem + "_pb2"
        found = descriptor_pb2.FileDescriptorProto()
        importlib.import_module(module).DESCRIPTOR.CopyToProto(found)
        wanted = descriptor_pb2.FileDescriptorProto()
        wanted.CopyFrom(expected)
        wanted.ClearField("source_code_info")
        wanted.DiscardUnknownFields()  # buf's own notes
        for message in wanted.message_type:
            strip_json_names(message)
        for message in found.message_type:
            strip_json_names(message)
        assert found == wanted, f"{module} is stale: run clients/python/generate.py"


def strip_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    """Removes what buf fills in and protoc's Python output leaves out."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        strip_json_names(nested)


def test_every_exported_name_of_the_stubs_exists(contract: Contract) -> None:
    package = importlib.import_module("mlxrt_client.v1")
    wanted = set()
    for file in contract.values():
        wanted |= {m.name for m in file.message_type} | {e.name for e in file.enum_type}
        wanted |= {f"{service.name}Stub" for service in file.service}
    assert set(package.__all__) == wanted
    assert all(hasattr(package, name) for name in wanted)
