"""GitHub's workflows fit its schema, and say what the README promises of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def problems(path: Path) -> str:
    """Returns what GitHub's schema has against a workflow; empty if nothing."""
    command = [
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows",
        str(path),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout + result.stderr if result.returncode else ""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_it_fits_the_schema(path: Path) -> None:
    assert problems(path) == ""


def test_a_wrong_one_does_not(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs-onn:"))
    assert "runs-onn" in problems(wrong)


def test_a_mac_runs_the_kernels_and_all_tests() -> None:
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    mac = workflow["jobs"]["mac"]
    assert mac["runs-on"] == "macos-15"
    commands = " ".join(step.get("run", "") for step in mac["steps"])
    assert "check --kernels" in commands and "pytest" in commands
    assert {"macos-15", "ubuntu-24.04"} <= set(
        workflow["jobs"]["wheels"]["strategy"]["matrix"]["os"]
    )
