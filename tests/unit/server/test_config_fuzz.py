"""Any configuration is either Settings within their ranges, or a ConfigError that names what is
wrong; never anything else. `MLXRT_FUZZ_CONFIGS` searches longer and anew each time (unless set it
is the same 150 a test); what it found stands below as cases of its own."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mlxrt.cli import main
from mlxrt.cli_options import explicit_values
from mlxrt.config import ConfigError, Settings, load_settings
from mlxrt.core.model import Limits
from mlxrt.deploy.toml_text import toml_text
from mlxrt.env_variables import ENV_PREFIX
from mlxrt.exit_code import ExitCode

EXAMPLES = int(os.environ.get("MLXRT_FUZZ_CONFIGS", "150"))
FAST = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="MLXRT_FUZZ_CONFIGS" not in os.environ,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def leaves() -> Iterator[tuple[str, ...]]:
    """The path of each setting that has a value of its own."""
    for name, field in Settings.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            yield from ((name, part) for part in table.model_fields)
        else:
            yield (name,)


LEAVES = list(leaves())
TABLES = sorted({path[0] for path in LEAVES if len(path) == 2})
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "", "off", "auto", "unix:", "unix:/tmp/x", "unix:relative", "localhost:0", "[::1]:1",
        "0.0.0.0:1", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:٣", ":1", "http://", "http://a:1",
        "https://[::1]:4317", "NaN", "inf", "-1", "1e400", "9" * 5000, "[" * 50, "{}", "[1, 2]",
        '{"max_step_rows": 1}', "null", "true", "0x10", "1_000", "\x00", "\ud800",
    ]
)  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
PATHS = st.sampled_from(LEAVES)


def ends_well(load: Any) -> Settings | None:
    """Loads; answers the settings, or None for a refusal that says something."""
    try:
        found: Settings = load()
    except ConfigError as error:
        assert str(error).strip()
        return None
    assert_usable(found)
    return found


def assert_usable(found: Settings) -> None:
    """What the server relies on."""
    again = load_settings(**found.model_dump()).model_dump()
    assert again == found.model_dump()
    assert isinstance(found.limits.to_limits(), Limits)
    for name in ("memory_fraction", "drain_seconds", "stall_seconds"):
        value = getattr(found, name)
        assert 0 <= value < float("inf"), name


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else {path[1]: value}}


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    with mock.patch.dict(os.environ, clean, clear=True):
        yield


@FAST
@given(PATHS, VALUES)
def test_any_value_from_a_caller(path: tuple[str, ...], value: Any) -> None:
    refused_by_name(path, lambda: load_settings(**nested(path, value)))


@FAST
@given(st.dictionaries(PATHS, VALUES, max_size=4))
def test_any_values_together(values: dict[tuple[str, ...], Any]) -> None:
    explicit: dict[str, Any] = {}
    for path, value in values.items():
        if len(path) == 2:
            explicit.setdefault(path[0], {})[path[1]] = value
        else:
            explicit[path[0]] = value
    ends_well(lambda: load_settings(**explicit))


@FAST
@given(PATHS | st.sampled_from([(table,) for table in TABLES]), TEXTS)
def test_any_text_from_the_environment(path: tuple[str, ...], text: str) -> None:
    try:
        variable = {ENV_PREFIX + "__".join(path).upper(): text}
        with mock.patch.dict(os.environ, variable):
            refused_by_name(path, load_settings)
    except (ValueError, UnicodeEncodeError):
        if not isinstance(text, str) or ("\x00" not in text and text.isprintable()):
            raise  # else no environment can hold it


@FAST
@given(PATHS, st.none() | st.booleans() | NUMBERS | TEXTS | st.lists(NUMBERS | TEXTS, max_size=3))
def test_any_value_from_a_file(path: tuple[str, ...], value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.toml"
        try:
            file.write_text(toml_text(nested(path, value)))
        except (UnicodeEncodeError, ValueError):
            return
        ends_well(lambda: load_settings(file))


@FAST
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf8", "replace")))
@example(b"\xff")
@example(b"a = " + b"[" * 5000)
@example(b"[limits]\nmax_step_rows = " + b"9" * 5000)
@example(b"limits = 3")
@example(b"[limits.deep]\nx = 1")
def test_any_bytes_for_a_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.toml"
        file.write_bytes(content)
        ends_well(lambda: load_settings(file))


@FAST
@given(
    st.lists(st.tuples(st.sampled_from([".".join(p) for p in LEAVES]) | TEXTS, TEXTS), max_size=3)
)
@example([("limits", "[" * 100_000)])
@example([("limits.max_step_rows", "9" * 5000)])
@example([("limits", "3"), ("limits.max_step_rows", "4")])
@example([("limits.max_step_rows", "4"), ("limits", "3")])
@example([("", "3")])
@example([(".", "3")])
@example([("limits.", "3")])
def test_any_set_option(entries: list[tuple[str, str]]) -> None:
    options = [f"{key}={text}" for key, text in entries]
    ends_well(lambda: load_settings(**explicit_values(options)))


def refused_by_name(path: tuple[str, ...], load: Any) -> None:
    """A refusal of one setting names it, or the rule that it breaks with others."""
    try:
        found = load()
    except ConfigError as error:
        assert path[-1] in str(error) or RULES.get(path[0], "\0") in str(error), str(error)
    else:
        assert_usable(found)


RULES = {
    "address": "other machines", "limits": "leases need", "fake": "fake model",
    "tls": "tls.", "metrics_beyond_loopback": "metrics_address",
}  # fmt: skip
"""By setting, words of the message of a rule between settings."""


# ---- what the search found ----


@pytest.mark.parametrize(
    ("environment", "content", "options", "named"),
    [
        ({"FAKE_MODEL__WINDOWS": "00"}, "", [], "MLXRT_FAKE_MODEL__WINDOWS"),
        ({"LIMITS": "[" * 100_000}, "", [], "MLXRT_LIMITS"),
        ({"TLS": ""}, "", [], "MLXRT_TLS"),
        ({}, "a = " + "[" * 5000, [], "a.toml"),
        ({}, "block_size = " + "9" * 5000, [], "a.toml"),
        ({}, "model = \"\udcff\"", [], "a.toml"),
        ({}, "", ["limits.max_step_rows=" + "9" * 5000], "limits.max_step_rows"),
        ({}, "", ["row_buckets=" + "[" * 100_000], "row_buckets"),
        ({}, "", ["model=\udcff", "block_size=0"], "block_size"),
    ],
)  # fmt: skip
def test_found_by_the_search(
    environment: dict[str, str], content: str, options: list[str], named: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "a.toml"
    file.write_bytes(content.encode("utf8", "surrogateescape"))
    arguments = ["mlxrt", "serve", "--config", str(file)]
    for option in options:
        arguments += ["--set", option]
    variables = {ENV_PREFIX + name: value for name, value in environment.items()}
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "argv", arguments),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == ExitCode.CONFIG
    assert named in capsys.readouterr().err
