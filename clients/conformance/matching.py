"""Captures and subset matches: what `$name`, `{run}`, `*` and null mean in a case (README.md)."""

from __future__ import annotations

import re
from typing import Any

CAPTURE = re.compile(r"^\$(\w+)(?:\[(\d+)(?:(:)(\d+))?\])?$")
ABSENT: Any = object()
"""Stands for a field that a message does not have."""

_TOLERANCE = 1e-5


class Mismatch(Exception):
    """An answer is not what the case expects; the message says where and why."""


class Captures:
    """The names that a case has bound, and the run's own part of request ids."""

    def __init__(self, run: str, bound: dict[str, Any]) -> None:
        """`run` replaces `{run}`; `bound` is what is known before the first exchange."""
        self.run = run
        self.bound = dict(bound)

    def fill(self, value: Any) -> Any:
        """Returns a request with every capture and every `{run}` in it replaced.

        Raises:
            Mismatch: a name is not bound.
        """
        if isinstance(value, dict):
            return {key: self.fill(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self.fill(part) for part in value]
        if not isinstance(value, str):
            return value
        if CAPTURE.match(value):
            return self.look_up(value)
        return value.replace("{run}", self.run)

    def look_up(self, text: str) -> Any:
        """Returns what `$name`, `$name[i]` or `$name[i:j]` stands for."""
        found = CAPTURE.match(text)
        assert found is not None
        name, first, colon, last = found.groups()
        if name not in self.bound:
            raise Mismatch(f"${name} is not bound")
        value = self.bound[name]
        if first is None:
            return value
        return value[int(first) : int(last)] if colon else value[int(first)]

    def match(self, expected: Any, actual: Any, path: str) -> None:
        """Compares an answer with what is expected of it, and binds the names met first.

        Raises:
            Mismatch: they differ.
        """
        if isinstance(expected, str) and (found := CAPTURE.match(expected)):
            if found[2] is None and found[1] not in self.bound:
                if actual is ABSENT:
                    raise Mismatch(f"{path}: is absent")
                self.bound[found[1]] = actual
                return
            expected = self.look_up(expected)
        if expected is None:
            if actual is not ABSENT:
                raise Mismatch(f"{path}: expected nothing, got {actual!r}")
        elif expected == "*":
            if actual is ABSENT:
                raise Mismatch(f"{path}: is absent")
        elif isinstance(expected, dict):
            self._match_object(expected, actual, path)
        elif isinstance(expected, list):
            self._match_list(expected, actual, path)
        else:
            wanted = self.fill(expected)
            if not _same(wanted, actual):
                got = "nothing" if actual is ABSENT else repr(actual)
                raise Mismatch(f"{path}: expected {wanted!r}, got {got}")

    def _match_object(self, expected: dict[str, Any], actual: Any, path: str) -> None:
        if not isinstance(actual, dict):
            raise Mismatch(f"{path}: is absent" if actual is ABSENT else f"{path}: is no object")
        for key, part in expected.items():
            self.match(part, actual.get(key, ABSENT), f"{path}.{key}")

    def _match_list(self, expected: list[Any], actual: Any, path: str) -> None:
        values = [] if actual is ABSENT else actual
        if not isinstance(values, list) or len(values) != len(expected):
            raise Mismatch(f"{path}: expected {len(expected)} elements, got {values!r}")
        for index, (part, value) in enumerate(zip(expected, values, strict=True)):
            self.match(part, value, f"{path}[{index}]")


def _same(expected: Any, actual: Any) -> bool:
    """Whether a scalar is the one expected; an absent one is false, zero or empty."""
    if actual is ABSENT:
        return not expected
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, int | float):
        try:
            number = int(actual) if isinstance(actual, str) else actual
        except ValueError:
            return False
        if isinstance(expected, int) and isinstance(number, int):
            return expected == number
        return bool(abs(number - expected) <= _TOLERANCE * max(1.0, abs(expected)))
    return bool(expected == actual)
