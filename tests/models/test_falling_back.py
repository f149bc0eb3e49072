"""Where the device has no kernels for a model, gather serves it: said once, and counted."""

from __future__ import annotations

import pytest
import structlog

from mlxrt import kernels
from mlxrt.config import Settings
from mlxrt.core.step import Item, NewSequence, TokenSource
from mlxrt.launch import make_engine
from mlxrt.testing.local_runner import LocalRunner


def refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("no kernel for head size 64")


@pytest.mark.parametrize("refused", [True, False])
def test_the_reason_is_logged_once_and_calls_are_counted(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:
        monkeypatch.setattr(kernels, "paged_attention", refuse)
    settings = Settings(blas="reference")
    engine = make_engine(settings)
    with structlog.testing.capture_logs() as logs:
        runner = LocalRunner(engine, settings.limits.to_limits())
        try:
            before = engine.counters()
            blocks = runner.allocate(1)
            runner.run(new_sequences=[NewSequence(1, [1, 2, 3, 4], {0: blocks})])
            for _ in range(2):
                runner.run(items=[Item(1, 2, source=TokenSource.REGISTERED)])
            after = engine.counters()
        finally:
            runner.close()
    said = [entry for entry in logs if entry["event"] == "gather attention instead of native"]
    assert [entry["reason"] for entry in said] == ["no kernel for head size 64"] * refused
    assert runner.description.attention_path == ("gather" if refused else "native")
    assert (after.attend_gather > before.attend_gather) == refused
    assert (after.attend_native > before.attend_native) != refused
