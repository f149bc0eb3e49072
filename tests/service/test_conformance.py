"""The conformance cases pass through each runner, a wrong expectation fails in each, and the tokens
that the cases hold are those of the models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "clients" / "conformance"
CASES: list[dict[str, Any]] = [
    case
    for path in sorted((FOLDER / "cases").glob("*.json"))
    for case in json.loads(path.read_text())["cases"]
]
SERVERS = json.loads((FOLDER / "servers.json").read_text())
FAKE = [name for name in SERVERS if name != "bundled"]
TIMEOUT_S = 540
MASK = (1 << 64) - 1
Result = tuple[int, dict[str, int], str]
"""Of a runner: its exit code, its counts by verdict and all that it printed."""


def run(command: list[str], cwd: Path, **variables: str) -> Result:
    """Runs a runner."""
    # The Python runner's modules lie beside it: it needs its own folder on the path.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    last = re.search(r"(\d+) passed, (\d+) failed, (\d+) skipped\n$", result.stdout)
    assert last, result.stdout + result.stderr
    counts = dict(zip(("passed", "failed", "skipped"), map(int, last.groups()), strict=True))
    return result.returncode, counts, result.stdout


def python_runner(*options: str) -> Result:
    """The Python runner."""
    return run([sys.executable, str(FOLDER / "run.py"), *options], FOLDER)


def node_runner(folder: Path, *options: str) -> Result:
    """The Node runner."""
    protos = {"MLXRT_PROTOS": str(REPOSITORY / "protos")}
    serve = f"{sys.executable} -P -m mlxrt serve"
    command = ["node", "conformance.mjs", "--mlxrt", serve, "--python", sys.executable]
    return run([*command, "--folder", str(FOLDER), *options], folder, **protos)


def on(names: list[str]) -> list[str]:
    """Returns the option that confines a run to some servers."""
    return [part for name in names for part in ("--only", name)]


def runs_on(names: list[str]) -> int:
    """Returns how many pairs of a case and a server there are on these servers."""
    return sum(name in names for case in CASES for name in case["servers"])


def passed_all(result: Result, names: list[str]) -> None:
    """Every case ran and passed on every one of its servers among `names`."""
    code, counts, printed = result
    assert code == 0, printed
    assert counts == {"passed": runs_on(names), "failed": 0, "skipped": 0}, printed


def test_there_are_enough_cases_and_each_says_what_it_shows() -> None:
    assert len(CASES) >= 40
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names)
    assert {name for case in CASES for name in case["servers"]} == set(SERVERS)
    for case in CASES:
        assert case["shows"] and case["servers"]
        assert ("exchanges" in case) != ("schedule" in case)


@pytest.fixture(scope="module")
def on_fake_servers(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Result]]]:
    """The runs of those runners that are asked for, side by side: they wait for leases most of the
    time."""
    names = {item.name for item in request.session.items if item.path == request.path}
    with ThreadPoolExecutor(2) as pool:
        runs = {}
        if "test_node_on_fake_servers" in names and shutil.which("node") is not None:
            folder = request.getfixturevalue("node_folder")
            runs["node"] = pool.submit(node_runner, folder, *on(FAKE))
        if "test_python_on_fake_servers" in names:
            runs["python"] = pool.submit(python_runner, *on(FAKE))
        yield runs


def test_python_on_fake_servers(on_fake_servers: dict[str, Future[Result]]) -> None:
    passed_all(on_fake_servers["python"].result(), FAKE)


def test_python_on_the_bundled_model() -> None:
    passed_all(python_runner("--only", "bundled"), ["bundled"])


def test_node_on_fake_servers(
    node_folder: Path, on_fake_servers: dict[str, Future[Result]]
) -> None:
    passed_all(on_fake_servers["node"].result(), FAKE)


def test_node_on_the_bundled_model(node_folder: Path) -> None:
    passed_all(node_runner(node_folder, "--only", "bundled"), ["bundled"])


def test_through_the_client_library() -> None:
    code, counts, printed = python_runner("--through", "library", *on(["plain", "windowed", "nan"]))
    assert code == 0, printed
    assert counts["passed"] >= 50, printed
    assert "passed stream-two-in-flight on plain" in printed
    assert "passed schedulers-pool-too-small on plain" in printed


WRONG = {
    "steps-prefill-decode": lambda case: case["values"]["plain"].update(t3=1),
    "numbers-gap": lambda case: case["exchanges"][1]["error"]["metadata"].update(
        expected_step_number="2"
    ),
    "steps-table-grows": lambda case: case["exchanges"][3]["error"].update(
        reason="ERROR_REASON_BLOCK_HOLE"
    ),
    "blocks-all-or-none": lambda case: case["exchanges"][1]["error"].update(retry_delay="*"),
    "steps-without-rows": lambda case: case["exchanges"][1].update(error={"code": 3}),
    "stream-two-in-flight": lambda case: case["exchanges"][4]["receive"]["step"].update(
        step_number=2
    ),
    "schedulers-one-prompt": lambda case: case["tokens"]["plain"][0].pop(),
}
"""A case each, and what makes it wrong: a token, a fact, a reason, a presence, a success, an order,
a length."""


@pytest.fixture
def wrong_cases(tmp_path: Path) -> Path:
    """Returns a folder of cases each of which expects something that does not happen."""
    cases = []
    for case in json.loads(json.dumps(CASES)):
        if case["name"] in WRONG:
            WRONG[case["name"]](case)
            if case["name"] == "steps-without-rows":
                del case["exchanges"][1]["response"]
            cases.append(case)
    assert len(cases) == len(WRONG)
    (tmp_path / "wrong.json").write_text(json.dumps({"cases": cases}))
    return tmp_path


@pytest.mark.parametrize("runner", ["python", "node"])
def test_a_wrong_expectation_fails(
    runner: str, wrong_cases: Path, request: pytest.FixtureRequest
) -> None:
    options = ["--only", "plain", "--cases", str(wrong_cases)]
    if runner == "python":
        code, counts, printed = python_runner(*options)
    else:
        code, counts, printed = node_runner(request.getfixturevalue("node_folder"), *options)
    assert code == 1
    assert counts == {"passed": 0, "failed": len(WRONG), "skipped": 0}, printed


def mix(value: int) -> int:
    """The mixer as sampling.proto writes it."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def fake_token(tokens: list[int], windows: list[int]) -> int:
    """The greedy token as the README of the cases writes it, for a vocabulary of 4096."""
    n, z = len(tokens), 0
    for window in windows:
        first = max(0, n - window) if window else 0
        h = sum(tokens[p] * (1 + (mix(p) >> 44)) for p in range(first, n))
        z = mix(z ^ ((h + n * 0x9E3779B97F4A7C15) & MASK))
    return z % 4096


def held_tokens(name: str) -> list[tuple[list[int], int]]:
    """Returns every token that the cases hold for a server, after the tokens before it."""
    found = []
    for case in CASES:
        if name not in case["servers"]:
            continue
        values = case.get("values", {}).get(name, {})
        for key, after in case.get("greedy", {}).items():
            before = [values[t[1:]] if isinstance(t, str) else t for t in after]
            found.append((before, values[key]))
        if "schedule" in case:
            prompts = case["schedule"]["prompts"]
            for prompt, tokens in zip(prompts, case["tokens"][name], strict=True):
                found += [(prompt + tokens[:i], token) for i, token in enumerate(tokens)]
    return found


@pytest.mark.parametrize("name", FAKE)
def test_the_tokens_are_the_fake_models(name: str) -> None:
    windows = [0, 8] if name == "windowed" else [0]
    for before, token in held_tokens(name):
        assert fake_token(before, windows) == token


def test_the_golden_tokens_are_mlx_lms(tmp_path: Path) -> None:
    pairs = held_tokens("bundled")
    assert len(pairs) > 100
    program = (
        "import json, sys\n"
        "from mlxrt.models import read_checkpoint, resolve_folder\n"
        "from mlxrt.models.loading import import_mlx_lm_loader\n"
        "loader = import_mlx_lm_loader()\n"
        "import mlx.core as mx\n"
        "model, _ = loader.load_model(read_checkpoint(resolve_folder('bundled')).folder)\n"
        "model.set_dtype(mx.float32)\n"
        "contexts = json.load(sys.stdin)\n"
        "said = {}\n"  # of a text, the token after each of its beginnings
        "for c in sorted(contexts, key=len, reverse=True):\n"
        "    if not any(text[:len(c)] == tuple(c) for text in said):\n"
        "        said[tuple(c)] = model(mx.array([c]))[0].argmax(-1).tolist()\n"
        "tokens = [next(t[len(c) - 1] for text, t in said.items() if text[:len(c)] == tuple(c))\n"
        "          for c in contexts]\n"
        "print(json.dumps(tokens))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([before for before, _ in pairs]),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [token for _, token in pairs]
