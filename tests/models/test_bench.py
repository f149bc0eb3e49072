"""The benchmarks as a user runs them: small ones, for the form of their reports and the arms that
ran.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mlxrt", "bench", *arguments], capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def _report(*arguments: str) -> Any:
    done = _bench(*arguments, "--json", "-")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_bench_step_times_every_arm() -> None:
    options = ["--sequences", "2", "--repeats", "2", "--steps", "2", "--context", "20"]
    options += ["--prefill", "2x20"]
    report = _report("step", "--model", "fake", "--model", "bundled", *options)
    assert report["device"].startswith(("cpu", "metal", "cuda"))
    assert [model["name"] for model in report["models"]] == ["fake", "bundled"]
    for model in report["models"]:
        (cell,) = model["cells"]
        alone = cell.pop("mlx_lm_tokens_per_s")
        assert alone is None if model["name"] == "fake" else alone > 0
        assert (cell.pop("sequences"), cell.pop("context")) == (2, 20)
        assert cell.pop("sampled_stream_tokens_per_s") is None
        assert cell.pop("dense_tokens_per_s") is None
        assert set(cell) == {
            "grpc_stream_tokens_per_s", "grpc_unary_tokens_per_s", "in_process_tokens_per_s",
            "overhead_ms_p50", "overhead_ms_p99",
        }  # fmt: skip
        assert all(value > 0 for value in cell.values())
    (prefill,) = report["models"][1]["prefills"]
    assert (prefill.pop("sequences"), prefill.pop("context")) == (2, 20)
    assert len(prefill) == 2 and all(value > 0 for value in prefill.values())


def test_bench_step_runs_the_arms_that_it_is_told_to_one_at_a_time() -> None:
    options = ["--sequences", "1", "--repeats", "2", "--steps", "2", "--apart"]
    options += ["--context", "20", "--context", "40", "--arm", "stream", "--arm", "sampled"]
    options += ["--arm", "dense", "--in-flight", "3", "--rounds", "2", "--num-blocks", "500"]
    report = _report("step", "--model", "bundled", *options)
    assert (report["in_flight"], report["rounds"], report["num_blocks"]) == (3, 2, 500)
    assert len(report["models"][0]["cells"]) == 2
    for cell, context in zip(report["models"][0]["cells"], (20, 40), strict=True):
        assert cell["context"] == context
        ran = {name for name, value in cell.items() if name.endswith("per_s") and value}
        assert ran == {
            "grpc_stream_tokens_per_s", "sampled_stream_tokens_per_s", "dense_tokens_per_s"
        }  # fmt: skip


def test_bench_step_says_what_it_can_not_read() -> None:
    for option, value in (("--prefill", "8"), ("--arm", "steam")):
        done = _bench("step", "--model", "fake", option, value)
        assert done.returncode == 2
        assert value in done.stderr and "Traceback" not in done.stderr


def test_bench_step_knows_its_models() -> None:
    done = _bench("step", "--model", "no-such-model")
    assert done.returncode == 2
    assert "no-such-model" in done.stderr and "Traceback" not in done.stderr


def test_bench_attention_ran_the_native_op() -> None:
    options = ["--context", "100", "--batch", "2", "--dtype", "float32", "--seconds", "0"]
    report = _report("attention", *options)
    assert report["read_gb_per_s"] > 0 and report["sweeps"] == 2 and report["left_out"] == []
    paged, gathered = report["cells"]
    assert (paged["context"], paged["batch"], paged["block_size"]) == (100, 2, 16)
    assert (paged["layout"], paged["path"]) == ("token_major", "native")
    assert (gathered["layout"], gathered["path"]) == ("head_major", "gather")
    assert all(paged[name] > 0 for name in paged if name.endswith("_us"))
    assert gathered["paged_us"] is None and gathered["gather_us"] > 0
