"""Where the device has no kernels for a model, gather serves it: said once, and counted."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from mlxrt import kernels
from mlxrt.config import Settings
from mlxrt.core.step import Item, NewSequence, TokenSource
from mlxrt.engine.counters import EngineCounters
from mlxrt.launch import make_engine
from mlxrt.testing.local_runner import LocalRunner


def refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("no kernel for head size 64")


def run_a_prompt(settings: Settings) -> tuple[EngineCounters, list[Any], str]:
    """Runs a prompt in two chunks and samples once; returns counts, logs and the attention path."""
    engine = make_engine(settings)
    with structlog.testing.capture_logs() as logs:
        runner = LocalRunner(engine, settings.limits.to_limits())
        try:
            blocks = runner.allocate(1)
            runner.run(new_sequences=[NewSequence(1, [1, 2, 3, 4], {0: blocks})])
            for last in (False, True):
                runner.run(items=[Item(1, 2, source=TokenSource.REGISTERED, sample=last)])
            counted = engine.counters()
        finally:
            runner.close()
    return counted, logs, runner.description.attention_path


@pytest.mark.parametrize("refused", [True, False])
def test_the_reason_is_logged_once_and_calls_are_counted(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:
        monkeypatch.setattr(kernels, "paged_attention", refuse)
    counted, logs, path = run_a_prompt(Settings(blas="reference"))
    said = [entry for entry in logs if entry["event"] == "gather attention instead of native"]
    assert [entry["reason"] for entry in said] == ["no kernel for head size 64"] * refused
    assert path == ("gather" if refused else "native")
    assert (counted.attend_gather > 0) == refused
    assert (counted.attend_native > 0) != refused
    assert (counted.sample_native > 0, counted.sample_plain) == (True, 0)


@pytest.mark.parametrize("wanted", [True, False])
def test_so_it_is_with_sampling(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gather path was asked for, no native sampling is wanted: nothing is said."""
    monkeypatch.setattr(kernels, "sample", refuse)
    settings = Settings(blas="reference", attention="auto" if wanted else "gather")
    counted, logs, _ = run_a_prompt(settings)
    said = [entry for entry in logs if entry["event"] == "plain sampling instead of native"]
    assert [entry["reason"] for entry in said] == ["no kernel for head size 64"] * wanted
    assert counted.sample_plain > 0 and counted.sample_native == 0
