"""The ops as the Metal host would run them: its own plan, on the emulated machine.

Arrays are numpy's; bfloat16 travels as uint16.
"""

from __future__ import annotations

import enum
import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emulator.build import build_program
from emulator.machine import (
    Buffer,
    Fault,
    Launch,
    Machine,
    Mode,
    declared_buffers,
    declared_threads,
)

NATIVE = Path(__file__).resolve().parents[1]


class Use(enum.IntEnum):
    """As in metal/plan.h."""

    ABSENT = 0
    READ = 1
    READ_IN_PLACE = 2
    WRITE = 3


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One launch of a plan."""

    kernel: str
    library: str
    buffers: tuple[tuple[int, Use], ...]
    params: bytes
    grid: tuple[int, int, int]
    threads: int
    threadgroup_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the Metal host would encode for one call of an op."""

    scratch_bytes: tuple[int, ...]
    dispatches: tuple[Dispatch, ...]
    texts: dict[str, str]


class Unserved(ValueError):
    """No kernel serves the call; the text says why."""


@functools.cache
def plan(op: str, *arguments: tuple[str, float]) -> Plan:
    """Returns the plan of an op.

    Raises:
        Unserved: the host would refuse the call.
    """
    program = build_program(
        "metal_plan",
        ("tests/metal_plan.cpp", "metal/plan.cpp", "metal/text.cpp", "kernels/gpu/launch.cpp"),
        (f'-DMLXRT_GPU_SOURCE_FOLDER="{NATIVE / "kernels/gpu"}"',),
    )
    command = [str(program), op, *(f"{name}={value!r}" for name, value in arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unserved(result.stderr.strip())
    read = json.loads(result.stdout)
    return Plan(
        tuple(read["scratch_bytes"]),
        tuple(
            Dispatch(
                kernel=d["kernel"], library=d["library"],
                buffers=tuple((array, Use(use)) for array, use in d["buffers"]),
                params=bytes(d["params"]), grid=tuple(d["grid"]), threads=d["threads"],
                threadgroup_bytes=d["threadgroup_bytes"],
            )
            for d in read["dispatches"]
        ),
        read["texts"],
    )  # fmt: skip


def run_plan(
    machine: Machine,
    what: Plan,
    inputs: list[NDArray[Any]],
    outputs: list[NDArray[Any] | int],
) -> list[NDArray[Any]]:
    """Runs a plan and returns its outputs.

    Args:
        outputs: for each, an array of its shape and type, or the index of the input that it is
            written into in place.

    Raises:
        Fault: a kernel did what it must not, the plan does not say what a kernel does to a buffer,
            or an output was not written to its end.
    """
    in_place = [output for output in outputs if isinstance(output, int)]
    buffers = [
        machine.buffer(f"input {i}", array, Mode.READ_WRITE if i in in_place else Mode.READ_ONLY)
        for i, array in enumerate(inputs)
    ]
    for i, output in enumerate(outputs):
        if isinstance(output, int):
            buffers.append(buffers[output])
        else:
            buffers.append(machine.buffer(f"output {i}", None, Mode.OUTPUT, like=output))
    for i, size in enumerate(what.scratch_bytes):
        empty = np.empty(size, np.uint8)
        buffers.append(machine.buffer(f"scratch {i}", None, Mode.OUTPUT, like=empty))
    nothing = machine.buffer("an absent buffer", None, Mode.READ_ONLY, like=np.empty(0, np.uint8))
    for dispatch in what.dispatches:
        _launch(machine, what, dispatch, buffers, nothing)
    written = buffers[len(inputs) : len(inputs) + len(outputs)]
    for buffer, output in zip(written, outputs, strict=True):
        if not isinstance(output, int) and machine.unwritten(buffer) >= 0:
            raise Fault(f"byte {machine.unwritten(buffer)} of an output was never written")
    return [machine.read(buffer) for buffer in written]


def _launch(
    machine: Machine, what: Plan, dispatch: Dispatch, buffers: list[Buffer], nothing: Buffer
) -> None:
    text = what.texts[dispatch.library]
    declared = declared_buffers(text, dispatch.kernel)
    if declared_threads(text, dispatch.kernel) != dispatch.threads:
        raise Fault(f"{dispatch.kernel} is not compiled for {dispatch.threads} threads")
    bound = []
    written = {array for array, use in dispatch.buffers if use is Use.WRITE}
    for index, (array, use) in enumerate(dispatch.buffers):
        if use is not Use.ABSENT and (use is Use.WRITE) != (declared[index] == "output"):
            raise Fault(f"{dispatch.kernel}: buffer {index} is {declared[index]}, planned {use!r}")
        if use is not Use.WRITE and use is not Use.ABSENT and array in written:
            raise Fault(f"{dispatch.kernel}: array {array} is both read and written")
        bound.append(nothing if use is Use.ABSENT else buffers[array])
        if use is not Use.ABSENT:
            writable = Mode.READ_WRITE if use is Use.WRITE else Mode.READ_ONLY
            machine.set_mode(buffers[array], writable)
    params = np.frombuffer(dispatch.params, np.uint8)
    bound.append(machine.buffer("params", params, Mode.READ_ONLY))
    machine.launch(
        Launch(
            text, dispatch.kernel, bound, dispatch.grid, (dispatch.threads, 1, 1),
            dispatch.threadgroup_bytes,
        )
    )  # fmt: skip
