"""Settings: sources and their order, ranges, unknown keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from mlxrt.config import ConfigError, FakeSettings, LimitSettings, Settings, load_settings
from mlxrt.core.model import Limits

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("MLXRT_"):
            monkeypatch.delenv(name)


def test_defaults_are_the_cores_limits() -> None:
    assert load_settings().limits.to_limits() == Limits()


def test_explicit_wins_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlxrt.toml"
    file.write_text("block_size = 8\nfake = true\n[limits]\nmax_sessions = 3\nmax_step_rows = 99\n")
    monkeypatch.setenv("MLXRT_BLOCK_SIZE", "32")
    monkeypatch.setenv("MLXRT_LIMITS__MAX_STEP_ROWS", "77")
    settings = load_settings(file)
    assert (settings.block_size, settings.fake) == (32, True)
    assert (settings.limits.max_sessions, settings.limits.max_step_rows) == (3, 77)
    settings = load_settings(file, block_size=64, limits={"max_step_rows": 55})
    assert settings.block_size == 64
    assert (settings.limits.max_sessions, settings.limits.max_step_rows) == (3, 55)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().block_size = 3


def test_unknown_keys_are_errors_in_each_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="blok_size"):
        load_settings(blok_size=3)
    file = tmp_path / "mlxrt.toml"
    for text in ("blok_size = 3", "[limits]\nmax_rows = 3"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"blok_size|max_rows"):
            load_settings(file)
    file.write_text("block_size = ")
    with pytest.raises(ConfigError, match=r"mlxrt\.toml"):
        load_settings(file)
    with pytest.raises(ConfigError, match="absent"):
        load_settings(tmp_path / "absent.toml")
    for name in ("MLXRT_BLOK_SIZE", "MLXRT_LIMITS__MAX_ROWS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "3")
            with pytest.raises(ConfigError, match=name):
                load_settings()


def test_a_misspelt_variable_is_told_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXRT_LIMITS__MAX_STEP_ROW", "3")
    with pytest.raises(ConfigError, match=r"is MLXRT_LIMITS__MAX_STEP_ROWS meant\?"):
        load_settings()


def test_variables_of_our_own_tools_are_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("clients/node/*.mjs")]
    read = re.compile(r"""(?:environ(?:\.get\(|\[)|process\.env\.)["']?(MLXRT_[A-Z_]+)""")
    found = {name for file in files for name in read.findall(file.read_text())}
    assert {"MLXRT_PROTOS", "MLXRT_FUZZ_SEED", "MLXRT_STATEFUL_RULES"} <= found
    for name in found:
        monkeypatch.setenv(name, "1")
    load_settings()
    monkeypatch.setenv("MLXRT_PROTO", "1")
    with pytest.raises(ConfigError, match="MLXRT_PROTO"):
        load_settings()


@pytest.mark.parametrize(
    "values",
    [
        {"block_size": 0}, {"block_size": 257}, {"num_blocks": 1}, {"window_num_blocks": 1},
        {"memory_fraction": 0},
        {"memory_fraction": 1.1}, {"attention": "fast"}, {"row_buckets": (4, 4)},
        {"row_buckets": (0, 4)}, {"drain_seconds": -1}, {"limits": {"max_inflight_steps": 1}},
        {"limits": {"min_lease_ttl_ms": 40_000}}, {"limits": {"max_lease_ttl_ms": 20_000}},
        {"fake_model": {"windows": ()}}, {"model": ""},
        {"fake": True, "limits": {"max_model_length": 40_000}},
    ],
)  # fmt: skip
def test_out_of_range_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(**values)
    key, value = next(iter(values.items()))
    names = [key, *value] if isinstance(value, dict) else [key]
    assert any(name in str(raised.value) for name in names) or "lease" in str(raised.value)


@pytest.mark.parametrize("model", [Settings, LimitSettings, FakeSettings])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description and field.description.endswith("."), name
