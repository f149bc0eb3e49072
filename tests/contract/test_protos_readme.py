"""protos/README.md is true: its tables are the contract's, its worked exchange is what happens."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, text_format
from mlxrt_client import Client, v1

from mlxrt.core.model import Limits
from mlxrt.errors import StatusCode
from mlxrt.testing import FakeEngine
from mlxrt.testing.server_thread import ServerThread

Contract = Mapping[str, descriptor_pb2.FileDescriptorProto]
SESSION_ID = "0123456789abcdef0123456789abcdef"
TURN = re.compile(r"^`(?:(\w+)\.(\w+) →|←)`\n```textproto\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    """The text."""
    return (repository / "protos" / "README.md").read_text()


def notes(contract: Contract) -> Iterator[tuple[str, str]]:
    """Every message, field, enum value and rpc by name, with its comment on one line."""
    for file in contract.values():
        for place in file.source_code_info.location:
            path, note = list(place.path), " ".join(place.leading_comments.split())
            match path:
                case [4, i]:
                    yield file.message_type[i].name, note
                case [4, i, 2, j]:
                    message = file.message_type[i]
                    yield f"{message.name}.{message.field[j].name}", note
                case [5, i, 2, j]:
                    yield file.enum_type[i].value[j].name, note
                case [6, i, 2, j]:
                    service = file.service[i]
                    yield f"{service.name}.{service.method[j].name}", note


def section(readme: str, heading: str) -> str:
    """Returns the text below a heading."""
    return re.split(r"^## ", readme.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.M)[0]


def test_the_error_table_is_the_contract_s(readme: str, contract: Contract) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", section(readme, "Errors"), re.M)
    found = {reason: (code, normal(text)) for reason, code, text in rows}
    wanted = {}
    for name, note in notes(contract):
        if name.startswith("ERROR_REASON_") and not name.endswith("UNSPECIFIED"):
            code, text = re.split(r"\W+", note, maxsplit=1)
            wanted[name.removeprefix("ERROR_REASON_")] = (code, normal(text))
    assert found == wanted


def normal(text: str) -> str:
    """Returns the text without the case of its first letter and the quotes around it."""
    text = text.strip("` ")
    return text[0].lower() + text[1:]


def test_the_list_of_later_things_is_the_contract_s(readme: str, contract: Contract) -> None:
    text = section(readme, "What is in the contract and not yet served")
    found = re.findall(r"^- `(.+)`$", text, re.M)
    wanted = [name for name, note in notes(contract) if re.search(r"\bLater\b", note)]
    assert len(wanted) > 10
    assert sorted(found) == sorted(wanted)


def test_every_name_in_the_text_exists(readme: str, contract: Contract) -> None:
    known = {code.name for code in StatusCode} | {"go_package", "java_package"}
    for name, note in notes(contract):
        known |= {name, *name.split("."), name.removeprefix("ERROR_REASON_")}
        known |= set(re.findall(r"`(\w+)`", note))  # facts that errors carry
    prose = re.sub(r"```.*?```", "", readme, flags=re.DOTALL)
    for name in re.findall(r"`([A-Za-z]+_[A-Za-z_]+)`", prose):
        assert name in known, name
    for name in re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", prose):
        assert name in known | {"ErrorInfo", "BadRequest", "RetryInfo"}, name


def test_the_limits_are_those_of_the_server(contract: Contract) -> None:
    declared = {field.name for field in v1.Limits.DESCRIPTOR.fields}
    assert declared == set(Limits.__dataclass_fields__) | {"stored_replies"}
    assert Limits().stored_replies == Limits().max_inflight_steps + 2


def test_links_point_somewhere(readme: str, repository: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(targets) >= 3
    for target in targets:
        assert (repository / "protos" / target).exists(), target


class Exchange:
    """Replays turns against a server; messages of the text have SESSION_ID where the real id is."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._session_id = ""
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: Any = None
        self._unary: Any = None

    def send(self, service: str, rpc: str, text: str) -> None:
        """Sends what the text says; over the one stream where it is Execute."""
        text = text.replace(SESSION_ID, self._session_id)
        request = text_format.Parse(text, getattr(v1, f"{rpc}Request")())
        if rpc != "Execute":
            stubs = {
                "SessionService": self._client.sessions,
                "ExecutionService": self._client.execution,
            }
            self._unary = getattr(stubs[service], rpc)(request, timeout=60)
            if rpc == "OpenSession":
                self._session_id = self._unary.session.session_id
            return
        if self._answers is None:
            messages = iter(self._requests.get, None)
            self._answers = self._client.execution.Execute(messages, timeout=60)
        self._requests.put(request)

    def receive(self) -> Any:
        """Returns the next answer, without what differs from run to run."""
        answer = self._unary if self._unary is not None else next(self._answers)
        self._unary = None
        if isinstance(answer, v1.ExecuteResponse) and answer.HasField("step"):
            assert answer.step.HasField("timings")
            answer.step.ClearField("timings")
        return answer

    def end(self) -> None:
        """Ends the stream."""
        self._requests.put(None)

    def parse(self, text: str, answer: Any) -> Any:
        """Returns the text as a message of the answer's type, in the answer's words."""
        wanted = text_format.Parse(text.replace(SESSION_ID, self._session_id), type(answer)())
        if "instance_id" in answer.DESCRIPTOR.fields_by_name:
            assert wanted.instance_id
            wanted.instance_id = answer.instance_id
        return wanted


def test_the_worked_exchange_is_what_happens(readme: str) -> None:
    turns = TURN.findall(section(readme, "A worked exchange"))
    requests = [turn for turn in turns if turn[1]]
    assert len(requests) >= 14 and len(turns) == 2 * len(requests)
    assert section(readme, "A worked exchange").count("```textproto") == len(turns)
    engine = FakeEngine(num_blocks=9, block_size=4)
    with ServerThread(engine) as server, Client(server.address) as client:
        exchange = Exchange(client)
        inflight = inflight_max = 0
        for service, rpc, text in turns:
            if rpc:
                exchange.send(service, rpc, text)
                inflight += 1
                inflight_max = max(inflight_max, inflight)
            else:
                answer = exchange.receive()
                assert answer == exchange.parse(text, answer)
                inflight -= 1
        exchange.end()
        assert inflight_max == 2
    # Eight steps ran: the refused one and the repeated one did not.
    assert engine.plans_run == 8
