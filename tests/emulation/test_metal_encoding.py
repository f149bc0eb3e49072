"""What the Metal host tells MLX's encoder, by an encoder that records it: order, temporaries."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from emulator.build import build_program

NATIVE = Path(__file__).resolve().parents[2] / "native"


@cache
def program() -> Path:
    """Builds the host's encoder against the recording header and the installed MLX."""
    spec = find_spec("mlx")
    assert spec is not None and spec.submodule_search_locations is not None
    (mlx,) = (Path(p) for p in spec.submodule_search_locations if (Path(p) / "include").exists())
    flags = (
        f"-I{NATIVE / 'tests' / 'recording_metal'}", "-isystem", str(mlx / "include"),
        f'-DMLXRT_GPU_SOURCE_FOLDER="{NATIVE / "kernels/gpu"}"', "-Wno-restrict",
        f"-Wl,-rpath,{mlx / 'lib'}", str(mlx / "lib" / "libmlx.so"),
    )  # fmt: skip
    sources = (
        "tests/metal_encode.cpp", "metal/encode.cpp", "metal/plan.cpp", "metal/text.cpp",
        "kernels/gpu/launch.cpp",
    )  # fmt: skip
    return build_program("metal_encode", sources, flags)


def told(what: str) -> tuple[list[str], list[str]]:
    """Returns the addresses of the arrays, and what the encoder was told, one line each."""
    result = subprocess.run([program(), what], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    arrays = [line.split()[2] for line in lines if line.startswith("array")]
    return arrays, [line for line in lines if not line.startswith("array")]


def test_attention_registers_the_pools_as_written_and_only_its_scratch_as_temporary() -> None:
    arrays, lines = told("attention")
    q, k_pool, v_pool, tables, _, _, out = arrays
    temporaries = [line.split()[1] for line in lines if line.startswith("temporary")]
    assert len(temporaries) == 4 and not set(temporaries) & set(arrays)
    first_dispatch = lines.index(next(line for line in lines if line.startswith("dispatch")))
    before = lines[:first_dispatch]
    for pool, index in ((k_pool, 1), (v_pool, 2)):
        assert f"input {pool} {index}" in before and f"registered {pool}" in before
    assert f"output {out} 7" in before and f"input {tables} 3" in before
    registered = {line.split()[1] for line in lines if line.startswith("registered")}
    assert registered == {k_pool, v_pool}
    # No sinks, no arrivals: something is bound, and no order follows from it.
    assert f"buffer {out} 6" in before and f"buffer {q} 10" in before


def test_a_merge_reads_what_the_parts_wrote() -> None:
    _, lines = told("attention")
    pipelines = [line.split()[-1] for line in lines if line.startswith("pipeline")]
    assert [name.startswith("merge_") for name in pipelines] == [False, True, False, True]
    written = {line.split()[1] for line in lines if line.startswith("output")}
    read = {line.split()[1] for line in lines if line.startswith("input")}
    temporaries = {line.split()[1] for line in lines if line.startswith("temporary")}
    assert temporaries <= written and temporaries <= read


def test_every_library_is_named_for_what_its_text_is_made_for() -> None:
    _, lines = told("attention")
    libraries = {line.split()[1]: line.split()[2] for line in lines if line.startswith("library")}
    assert len(libraries) == 2 and all(int(size) > 5000 for size in libraries.values())
    for field in ("element1", "head_dim64", "queries", "softcap0"):
        assert all(field in name for name in libraries), field


def test_writes_go_to_the_new_handles() -> None:
    arrays, lines = told("kv_write")
    outputs = [line for line in lines if line.startswith("output")]
    assert outputs == [f"output {arrays[5]} 3", f"output {arrays[6]} 4"]
    assert not any(line.startswith(("temporary", "registered")) for line in lines)
    assert "dispatch 3 1 1 by 128 1 1" in lines


def test_the_fused_write_goes_to_the_new_handles_and_takes_the_weights_there_are() -> None:
    arrays, lines = told("norm_rope_write")
    qkv, k_norm, queries, k_pool, v_pool = arrays[0], *arrays[6:]
    outputs = [line for line in lines if line.startswith("output")]
    assert outputs == [f"output {queries} 6", f"output {k_pool} 7", f"output {v_pool} 8"]
    assert f"buffer {qkv} 4" in lines and f"input {k_norm} 5" in lines
    assert not any(line.startswith(("temporary", "registered")) for line in lines)
    assert "dispatch 3 1 1 by 128 1 1" in lines
    assert any(line.startswith("library mlxrt_norm_rope_write_element0") for line in lines)


def test_sampling_passes_its_scratch_from_launch_to_launch() -> None:
    (logits, rules, *outputs), lines = told("sample")
    temporaries = [line.split()[1] for line in lines if line.startswith("temporary")]
    extents, bins, *candidates = temporaries
    shared = [f"input {logits} 0", f"input {rules} 1", f"input {extents} 2"]
    assert len(candidates) == 3
    written = [f"output {array} {i}" for i, array in enumerate(candidates, 4)]
    read = [line.replace("output", "input") for line in written]
    assert [line for line in lines if line.startswith(("input", "output", "dispatch"))] == [
        f"input {logits} 0", f"output {extents} 1", "dispatch 1 3 1 by 128 1 1",
        *shared, f"output {bins} 3", "dispatch 1 2 1 by 128 1 1",
        *shared, f"input {bins} 3", *written, "dispatch 1 2 1 by 128 1 1",
        *shared, f"input {bins} 3", *read,
        *(f"output {array} {i}" for i, array in enumerate(outputs, 7)),
        "dispatch 3 1 1 by 512 1 1",
    ]  # fmt: skip
    for library in ("mlxrt_sample_parts_element0", "mlxrt_sample_element0"):
        assert any(line.startswith(f"library {library}") for line in lines)


@pytest.mark.parametrize(
    ("architecture", "cores"),
    [("applegpu_g17p", 6), ("applegpu_g13g", 10), ("applegpu_g16s", 32), ("applegpu_g14d", 64),
     ("another", 32), ("", 32)],
)  # fmt: skip
def test_the_name_of_an_architecture_tells_about_how_many_cores_there_are(
    architecture: str, cores: int
) -> None:
    result = subprocess.run([program(), "cores", architecture], capture_output=True, text=True)
    assert result.stdout == f"{cores}\n"


def test_a_copy_reads_before_it_writes() -> None:
    arrays, lines = told("copy_blocks")
    pool = arrays[3]
    (scratch,) = (line.split()[1] for line in lines if line.startswith("temporary"))
    bound = [line for line in lines if line.startswith(("input", "output"))]
    order = [line for line in bound if line.endswith((" 0", " 3"))]
    assert order == [
        f"input {pool} 0", f"output {scratch} 3", f"input {scratch} 0", f"output {pool} 3",
    ]  # fmt: skip


def test_reads_of_a_pool_by_mlx_itself_are_registered_as_its_last_writer() -> None:
    """Metal's fences between command buffers know who wrote: the next write must find the reads."""
    arrays, lines = told("hold")
    read, pools = arrays[:2], arrays[2:]
    assert lines == [*(f"input {a} 0" for a in read), *(f"registered {p}" for p in pools)]


Encoder = tuple[set[str], set[str]]
"""What a command encoder of MLX has been told are inputs and outputs."""


def encoder(what: str, names: list[str]) -> Encoder:
    """Returns what an op tells the encoder that has it alone; `names` are those of its arrays."""
    arrays, lines = told(what)
    named = dict(zip(arrays, names, strict=True))  # scratch has no name
    words = [line.split() for line in lines if line.split()[0] in {"input", "output", "registered"}]
    words = [word for word in words if word[1] in named]
    inputs = {named[word[1]] for word in words if word[0] != "registered"}
    return inputs, {named[word[1]] for word in words if word[0] != "input"}


def waited_for(encoders: list[Encoder]) -> list[set[int]]:
    """Returns which encoders each waits for: the last that had one of its inputs as an output, and
    whom those waited for. Source: `CommandEncoder::end_encoding` in mlx/backend/metal/device.cpp.
    """
    last: dict[str, int] = {}
    waited: list[set[int]] = []
    for index, (inputs, outputs) in enumerate(encoders):
        direct = {last[name] for name in inputs if name in last}
        waited.append(direct.union(*(waited[other] for other in direct)))
        last.update(dict.fromkeys(outputs, index))
    return waited


def test_a_write_waits_for_what_mlx_itself_reads_in_another_command_buffer() -> None:
    gather = {"k_pool", "v_pool", "blocks"}, {"keys", "values"}
    hold = encoder("hold", ["keys", "values", "k_pool", "v_pool"])
    write = encoder("kv_write", ["k_pool", "v_pool", "rows", "rows", "slots", "k_pool", "v_pool"])
    assert waited_for([gather, hold, write])[2] == {0, 1}
    assert waited_for([gather, write])[1] == set()  # what hold_pools is for


@pytest.mark.parametrize("reader", ["attention", "copy_blocks"])
def test_a_write_waits_for_what_our_own_operations_read(reader: str) -> None:
    names = {
        "attention": ["q", "k_pool", "v_pool", "tables", "starts", "contexts", "out"],
        "copy_blocks": ["k_pool", "sources", "destinations", "k_pool"],
    }[reader]
    write = encoder("kv_write", ["k_pool", "v_pool", "rows", "rows", "slots", "k_pool", "v_pool"])
    assert waited_for([encoder(reader, names), write])[1] == {0}


@pytest.mark.parametrize(
    ("what", "reason"), [("strided", "is not row-contiguous"), ("unaligned", "no multiple of 16")]
)
def test_what_kernels_could_not_read_is_refused(what: str, reason: str) -> None:
    result = subprocess.run([program(), what], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("[paged_attention] array 0") and reason in result.stderr
