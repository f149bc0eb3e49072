"""Plans that come faster than the reading thread delivers: neither thread waits for the other."""

from __future__ import annotations

import time

import pytest

from mlxrt.engine.runner import StepRunner


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.timeout(60)
def test_plans_do_not_wait_for_a_delivery_that_waits_for_them(
    path, checkpoint, start_engine, make_scheduler, make_oracle, monkeypatch
):
    finish_read = StepRunner.finish_read

    def late(runner, deliver, *, recover):
        if not recover:  # the reading thread: the next plan has begun when it asks for the turn
            time.sleep(0.005)
        finish_read(runner, deliver, recover=recover)

    monkeypatch.setattr(StepRunner, "finish_read", late)
    running = start_engine(checkpoint("qwen3"), attention=path)
    scheduler = make_scheduler(running, seed=1, in_flight=4)
    sequence = scheduler.add([5, 6, 7], 30)
    while not sequence.finished:
        scheduler.step([sequence], chunk=3)
    scheduler.drain()
    assert sequence.tokens == make_oracle(checkpoint("qwen3")).greedy([5, 6, 7], 30)
