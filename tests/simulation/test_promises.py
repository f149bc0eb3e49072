"""The table of promises in tests/README.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_each_promise_names_tests_that_exist() -> None:
    text = (TESTS / "README.md").read_text()
    rows = re.findall(r"^\| P(\d+) \|.*$", text, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 21))
    for line in re.findall(r"^\| P\d+ \|.*$", text, re.MULTILINE):
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
        assert named or "Missing" in line, line
        for path, name in named:
            assert f"def {name}(" in (TESTS / path).read_text(), f"{path}::{name}"
