"""The machine from Python: buffers in, launches, buffers out."""

from __future__ import annotations

import ctypes
import enum
import functools
import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emulator.build import compile_kernels, machine_library
from emulator.msl import Translation, translate


class Order(enum.IntEnum):
    """The order in which the threads of a threadgroup get their turn; all but ASCENDING shuffle
    the threadgroups too."""

    ASCENDING = 0
    DESCENDING = 1
    SIMDGROUPS_APART = 2
    SHUFFLED = 3


class Mode(enum.IntEnum):
    """What kernels may do to a buffer. An OUTPUT holds nothing before it is written."""

    READ_ONLY = 0
    OUTPUT = 1
    READ_WRITE = 2


class Fault(RuntimeError):
    """A kernel did what it must not."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer of the machine."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        buffers: by index, as the kernel's parameters are; constants too.
        groups, threads: per axis.
    """

    text: str
    kernel: str
    buffers: Sequence[Buffer]
    groups: tuple[int, int, int]
    threads: tuple[int, int, int]
    threadgroup_bytes: int = 0


class Machine:
    """Memory and processor of the emulated device. There is one per process: making a new one
    forgets the buffers of the one before.
    """

    def __init__(self, order: Order = Order.ASCENDING, seed: int = 0) -> None:
        self._order = order
        self._seed = seed
        self._library = _library()
        self._library.emulator_reset()

    def buffer(
        self, name: str, values: NDArray[Any] | None, mode: Mode, like: NDArray[Any] | None = None
    ) -> Buffer:
        """Makes a buffer that holds `values`, or nothing of the shape and type of `like`."""
        array = np.ascontiguousarray(values if values is not None else like)
        data = array.ctypes.data if values is not None else None
        index = self._library.emulator_add(name.encode(), data, array.nbytes, int(mode))
        if index < 0:
            raise MemoryError("the emulator holds 128 buffers of up to 16 MB")
        return Buffer(index, array.shape, array.dtype)

    def set_mode(self, buffer: Buffer, mode: Mode) -> None:
        """Changes what kernels may do to a buffer from now on."""
        self._library.emulator_set_mode(buffer.index, int(mode))

    def read(self, buffer: Buffer) -> NDArray[Any]:
        """Returns a copy of what a buffer holds."""
        array = np.empty(buffer.shape, buffer.dtype)
        self._library.emulator_get(buffer.index, array.ctypes.data)
        return array

    def unwritten(self, buffer: Buffer) -> int:
        """Returns the first byte of an output that nothing has written, or -1."""
        return int(self._library.emulator_unwritten(buffer.index))

    @property
    def accesses(self) -> int:
        """Accesses watched in this process so far."""
        return int(self._library.emulator_accesses())

    def launch(self, launch: Launch) -> None:
        """Runs a kernel to its end.

        Raises:
            Refused: the text holds what the emulator does not know.
            CompileError: the text does not compile.
            Fault: a kernel did what it must not; the buffers hold no defined values.
        """
        translation = _translated(launch.text)
        declared = translation.kernels[launch.kernel]
        if len(declared) != len(launch.buffers):
            raise Fault(f"{launch.kernel} has {len(declared)} buffers, {len(launch.buffers)} bound")
        most, threads = translation.threads_max.get(launch.kernel), math.prod(launch.threads)
        if most is not None and threads > most:
            raise Fault(f"{launch.kernel} is compiled for {most} threads, {threads} launched")
        entry = getattr(_loaded(launch.text), f"emulated_{launch.kernel}")
        indices = (ctypes.c_int * len(launch.buffers))(*[b.index for b in launch.buffers])
        site = ctypes.c_void_p()
        report = self._library.emulator_launch(
            entry, indices, len(indices), (ctypes.c_uint * 3)(*launch.groups),
            (ctypes.c_uint * 3)(*launch.threads), launch.threadgroup_bytes, int(self._order),
            self._seed, ctypes.byref(site),
        )  # fmt: skip
        if report is not None:
            raise Fault(f"{launch.kernel}: {report.decode()}{_line(site.value)}")


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(machine_library()), ctypes.RTLD_GLOBAL)
    library.emulator_add.argtypes = [
        ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
    ]  # fmt: skip
    library.emulator_get.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.emulator_unwritten.restype = ctypes.c_int64
    library.emulator_accesses.restype = ctypes.c_uint64
    library.emulator_launch.restype = ctypes.c_char_p
    library.emulator_launch.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p,
    ]  # fmt: skip
    library.emulator_locate.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.emulator_locate.restype = ctypes.c_char_p
    return library


def declared_buffers(text: str, kernel: str) -> dict[int, str]:
    """Returns what a kernel declares each buffer to be: "input", "output" or "constant"."""
    return _translated(text).kernels[kernel]


def declared_threads(text: str, kernel: str) -> int | None:
    """Returns how many threads a kernel is compiled for; None where its text does not say."""
    return _translated(text).threads_max.get(kernel)


@functools.cache
def _translated(text: str) -> Translation:
    return translate(text)


@functools.cache
def _loaded(text: str) -> ctypes.CDLL:
    _library()
    return ctypes.CDLL(str(compile_kernels(_translated(text))))


def _line(site: int | None) -> str:
    """The line of the text that an address of code came from; empty where that can't be known."""
    if site is None or shutil.which("addr2line") is None:
        return ""
    offset = ctypes.c_uint64()
    path = _library().emulator_locate(site, ctypes.byref(offset))
    if path is None or not Path(path.decode()).exists():
        return ""
    command = ["addr2line", "-e", path.decode(), hex(offset.value - 1)]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f" at line {found.rsplit(':', 1)[1].split()[0]}" if "kernel.metal:" in found else ""
