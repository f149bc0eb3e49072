"""Arrays that every step reads, in huge pages of the operating system. Linux, on the CPU.

A decode step on a CPU is the reading of the weights, and in pages of 4 KiB its time depends on
where those happened to lie, and each of them costs an entry of the TLB.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

_MADV_COLLAPSE = 25
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_SIZE_MAX = 4 << 20
"""Where a page is 64 KiB a huge one is 512 MiB, of which most arrays would fill little."""

Advise = Callable[[int, int], int]
"""Makes an address and a count of bytes a huge page; answers 0 or an errno."""


@dataclass(frozen=True, slots=True)
class HugePages:
    """What came of it.

    Attributes:
        covered_bytes: what huge pages now hold.
        wanted_bytes: what they would hold, had the kernel done all that it was asked.
        reason: why not all of it; empty where it is.
    """

    covered_bytes: int
    wanted_bytes: int
    reason: str = ""


def collapse(arrays: Iterable[mx.array], advise: Advise | None = None) -> HugePages:
    """Asks the kernel for huge pages in place of those that arrays fill by half or more.

    What lies there is copied, addresses stay, and nobody may write meanwhile: call it before the
    first step. The kernel may say no (it is older than 6.1, memory is scattered): the arrays then
    stay as they are.

    Args:
        arrays: evaluated, of any dtype and shape.
        advise: in place of the kernel.
    """
    size = _huge_page_bytes()
    if not size:
        return HugePages(0, 0, "this system has no huge pages of up to 4 MiB")
    try:
        from mlxrt.kernels import data_address
    except ImportError as error:
        return HugePages(0, 0, f"the native extension can't be loaded: {error}")
    filled = _filled_pages([(data_address(array), array.nbytes) for array in arrays], size)
    pages = sorted(page for page, count in filled.items() if 2 * count >= size)
    ask = advise or _kernel()
    errors = Counter(ask(page * size, size) for page in pages)
    covered = errors.pop(0, 0)
    reason = ", ".join(f"{os.strerror(code)} ({count})" for code, count in errors.items())
    return HugePages(covered * size, len(pages) * size, reason)


def _huge_page_bytes() -> int:
    """Bytes of a huge page; 0 where there are none that serve."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        size = int(_SIZE_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return size if size <= _SIZE_MAX else 0


def _filled_pages(ranges: Iterable[tuple[int, int]], size: int) -> Counter[int]:
    """Bytes of the ranges by the page of `size` bytes that they lie in."""
    filled = Counter[int]()
    for start, count in ranges:
        end = start + count
        for page in range(start // size, -(-end // size)):
            filled[page] += min(end, (page + 1) * size) - max(start, page * size)
    return filled


def _kernel() -> Advise:
    process = ctypes.CDLL(None, use_errno=True)
    madvise = process.madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def advise(address: int, count: int) -> int:
        return 0 if madvise(address, count, _MADV_COLLAPSE) == 0 else ctypes.get_errno()

    return advise
