"""Runs the conformance cases against mlxrt servers.

python run.py                              starts `mlxrt serve` as servers.json says; all cases
python run.py --server plain=unix:/tmp/s   a server that runs already; other cases are skipped
python run.py --through library blocks-*   through mlxrt_client's own sessions; some cases

Exit code: 0 all passed, 1 a case failed, 2 nothing was run. README.md says what a case means.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from library import LibraryPlayer, fits_library, run_schedule
from matching import Captures, Mismatch
from servers import Server, Servers
from stubs import StubPlayer

FOLDER = Path(__file__).resolve().parent


@dataclass
class Outcome:
    """What became of one case on one server; `reason` is empty where it passed."""

    case: str
    server: str
    verdict: str
    reason: str = ""


def load_cases(folder: Path, patterns: list[str]) -> list[dict[str, Any]]:
    """Returns the cases whose name one of the patterns fits; all without patterns."""
    cases: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        cases += json.loads(path.read_text())["cases"]
    return [
        case
        for case in cases
        if not patterns or any(fnmatch.fnmatch(case["name"], pattern) for pattern in patterns)
    ]


def play(case: dict[str, Any], name: str, server: Server, through: str) -> None:
    """Plays one case against one server.

    Raises:
        Mismatch: it went otherwise than the case says.
    """
    values = case.get("values", {}).get(name, {})
    if "schedule" in case:
        run_schedule(case["schedule"], case["tokens"][name], server.address)
        return
    captures = Captures(uuid.uuid4().hex[:16], values)
    # The server judges what is too large, not this side.
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        player: StubPlayer | LibraryPlayer
        if through == "library":
            player = LibraryPlayer(server.address, captures)
        else:
            player = StubPlayer(channel, captures, server.control)
        try:
            for index, exchange in enumerate(case["exchanges"]):
                try:
                    player.play(exchange)
                except Mismatch as error:
                    raise Mismatch(f"exchange {index}: {error}") from error
        finally:
            player.finish()


def skip_reason(case: dict[str, Any], name: str, servers: Servers, through: str) -> str:
    """Returns why a case can't run on a server; empty if it can."""
    if not servers.available(name):
        return "no such server was given"
    if through == "library" and "schedule" not in case and not fits_library(case):
        return "says what mlxrt_client says for itself"
    if servers.is_fresh(name) and any("server" in e for e in case.get("exchanges", ())):
        return "" if servers.owns(name) else "the runner must own the server"
    return ""


def run_all(cases: list[dict[str, Any]], servers: Servers, through: str) -> Iterator[Outcome]:
    """Runs every case on every server that it names, server by server, in order."""
    names = list(dict.fromkeys(name for case in cases for name in case["servers"]))
    for name in names:
        for case in cases:
            if name not in case["servers"]:
                continue
            reason = skip_reason(case, name, servers, through)
            if reason:
                yield Outcome(case["name"], name, "skipped", reason)
                continue
            try:
                play(case, name, servers.get(name), through)
                yield Outcome(case["name"], name, "passed")
            except Mismatch as error:
                yield Outcome(case["name"], name, "failed", str(error))
            if servers.is_fresh(name):
                servers.drop(name)
        servers.drop(name)


def main() -> int:
    """Runs what the command line says and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="names of cases; * and ? stand for any text")
    parser.add_argument("--server", action="append", default=[], metavar="NAME=ADDRESS")
    parser.add_argument(
        "--mlxrt",
        default=f"{sys.executable} -P -m mlxrt serve",
        help="the command of `mlxrt serve`",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="servers to run on")
    parser.add_argument("--through", choices=["stubs", "library"], default="stubs")
    parser.add_argument("--cases", type=Path, default=FOLDER / "cases")
    options = parser.parse_args()
    addresses = dict(entry.split("=", 1) for entry in options.server)
    servers = Servers(
        json.loads((FOLDER / "servers.json").read_text()), addresses,
        None if addresses else options.mlxrt,
    )  # fmt: skip
    cases = load_cases(options.cases, options.patterns)
    if options.only:
        cases = [{**c, "servers": [s for s in c["servers"] if s in options.only]} for c in cases]
    count = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        for outcome in run_all(cases, servers, options.through):
            count[outcome.verdict] += 1
            line = f"{outcome.verdict} {outcome.case} on {outcome.server}"
            print(f"{line}: {outcome.reason}" if outcome.reason else line, flush=True)
    finally:
        servers.stop()
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    if count["failed"]:
        return 1
    return 0 if count["passed"] else 2


if __name__ == "__main__":
    sys.exit(main())
