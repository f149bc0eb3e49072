"""The arms of `mlxrt bench attention` compute what they say, by the path they say."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from mlxrt import kernels
from mlxrt.bench import attention, attention_plots
from mlxrt.bench.attention import Grid
from mlxrt.bench.attention_arms import LAYOUTS, ArmError, Case, Place
from mlxrt.cli import app
from mlxrt.kernels import reference

PLACE = Place(37, 3, 16, "token_major", "float32")
TINY = Grid((40,), (1, 2), (16,), ("float32",), budget_s=0.0)


def test_all_arms_of_a_case_attend_alike() -> None:
    case = Case(PLACE)
    arms = case.arms()
    paged = arms["paged"]()
    assert isinstance(paged, mx.array)
    gathered = arms["gather"]()
    assert isinstance(gathered, mx.array)
    assert mx.allclose(paged, gathered.squeeze(2), atol=1e-5).item()


def test_the_layouts_hold_the_same_positions() -> None:
    """Both gather keys and values to the same shape, block after block."""
    shapes = []
    for layout in LAYOUTS:
        case = Case(Place(37, 3, 16, layout, "float32"))
        keys, _ = case._gathered()
        shapes.append(keys.shape)
        block = case.k_pool[int(case.scattered[1, 2].item())]
        first = block[0] if layout == "token_major" else block[:, 0]
        assert mx.array_equal(keys[1, :, 32], first).item()
    assert shapes[0] == shapes[1] == (3, 8, 37, 128)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_append_writes_the_last_position(layout: str) -> None:
    case = Case(Place(37, 3, 16, layout, "float32"))
    mx.eval(case.arms()["append"]())
    keys, values = case._gathered()
    assert mx.array_equal(keys[:, :, 36], case.row).item()
    assert mx.array_equal(values[:, :, 36], case.row).item()


def test_ids_run_backwards_with_gaps() -> None:
    ids = Case(PLACE).scattered
    assert ids.reshape(-1).tolist() == list(range(18, 0, -2))
    assert Case(PLACE).k_pool.shape[0] == 19


@pytest.mark.parametrize("operation", ["paged_attention", "kv_write"])
def test_an_arm_off_its_path_is_an_error(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, operation, getattr(reference, operation))
    with pytest.raises(ArmError, match=f"{operation} ran natively 0 times"):
        attention.measure_cell(PLACE, 0.0)


def test_a_gather_arm_that_runs_natively_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "_attend", lambda case, k, v: case._paged(case.scattered))
    with pytest.raises(ArmError, match=r"arm gather .*paged_attention ran natively 3 times"):
        attention.measure_cell(PLACE, 0.0)


def test_the_least_of_the_sweeps_counts_and_what_is_too_big_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_read_gb_per_s", lambda: 1.0)
    sweeps = iter([5.0, 3.0, 4.0, 9.0])

    def measured(place: Place, budget_s: float, known: dict[str, float]) -> dict[str, float]:
        took = next(sweeps)
        arms = ("paged", "paged_ordered", "gather", "gather_only", "append", "contiguous")
        return {arm: min(took, known.get(arm, took)) for arm in arms}

    monkeypatch.setattr(attention, "measure_arms", measured)
    grid = Grid((40, 1 << 22), (1, 2), (16,), ("float32",), ("token_major",))
    seen: list[attention.Cell] = []
    report = attention.bench_attention(grid, seen.append)
    assert [cell.paged_us for cell in seen] == [4.0, 3.0]
    left_out = report["left_out"]
    assert isinstance(left_out, list)
    assert [(p["context"], p["batch"]) for p in left_out] == [(1 << 22, 1), (1 << 22, 2)]


def test_the_full_grid_is_all_of_it() -> None:
    contexts, batches, block_sizes = attention.FULL_GRID
    assert len(Grid(contexts, batches, block_sizes, ("bfloat16",)).places()) == 4 * 5 * 3 * 2


def test_csv_and_plots(tmp_path: Path) -> None:
    report = attention.bench_attention(TINY, lambda cell: None)
    cells = report["cells"]
    assert isinstance(cells, list)
    lines = attention.csv_lines(cells)
    assert len(lines) == 1 + 2 * 2 and all(line.startswith("CSV:") for line in lines)
    assert lines[0].startswith("CSV:context,batch,block_size,layout,dtype,")
    assert {line.count(",") for line in lines} == {lines[0].count(",")}
    files = attention_plots.write_plots(report, tmp_path / "plots")
    assert len(files) == len(LAYOUTS)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_a_layout_that_is_not_known_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "attention", "--layout", "diagonal"])
    assert result.exit_code != 0
    assert "--layout diagonal: one of token_major, head_major" in str(result.exception)
