"""Arrays moved into huge pages of the operating system."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxrt.engine import huge_pages
from mlxrt.engine.huge_pages import HugePages, collapse
from mlxrt.kernels import data_address

SIZE = 2 << 20


@pytest.fixture
def size_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel's answer for the size of a huge page: 2 MiB."""
    path = tmp_path / "hpage_pmd_size"
    path.write_text(f"{SIZE}\n")
    monkeypatch.setattr(huge_pages, "_SIZE_FILE", path)
    monkeypatch.setattr(sys, "platform", "linux")
    return path


def _filled(mebibytes: int) -> mx.array:
    array = mx.arange(mebibytes << 18, dtype=mx.float32)
    mx.eval(array)
    return array


@pytest.mark.usefixtures("size_file")
def test_each_page_that_an_array_fills_by_half_is_asked_for_once() -> None:
    arrays = [_filled(9), _filled(9)]
    asked: list[tuple[int, int]] = []

    def advise(address: int, count: int) -> int:
        asked.append((address, count))
        return 0

    pages = collapse([*arrays, arrays[0]], advise)
    assert pages == HugePages(len(asked) * SIZE, len(asked) * SIZE)
    assert len(set(asked)) == len(asked)
    assert all(address % SIZE == 0 and count == SIZE for address, count in asked)
    for array in arrays:  # 9 MiB hold at least three whole pages
        start, end = data_address(array), data_address(array) + array.nbytes
        inside = [a for a, _ in asked if start <= a and a + SIZE <= end]
        assert len(inside) == end // SIZE - -(-start // SIZE) >= 3
        assert len([a for a, _ in asked if a < end and start < a + SIZE]) <= len(inside) + 2


@pytest.mark.usefixtures("size_file")
def test_what_the_kernel_refuses_is_said() -> None:
    array = _filled(9)
    codes = iter([0, errno.ENOMEM, errno.ENOMEM] + [0] * 9)
    pages = collapse([array], lambda address, count: next(codes))
    assert pages.wanted_bytes - pages.covered_bytes == 2 * SIZE
    assert pages.reason == "Cannot allocate memory (2)"


@pytest.mark.parametrize("content", ["", "no number", str(512 << 20)])
def test_a_system_without_pages_that_serve(size_file: Path, content: str) -> None:
    size_file.write_text(content)
    pages = collapse([_filled(9)], lambda *_: pytest.fail("it was asked"))
    assert pages == HugePages(0, 0, "this system has no huge pages of up to 4 MiB")


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert collapse([_filled(9)]).wanted_bytes == 0


def test_the_kernel_of_this_machine() -> None:
    """Values and addresses stay; what it counts is what the kernel says of itself."""
    array = _filled(32)
    address, before = data_address(array), mx.array(array)
    pages = collapse([array])
    if not pages.covered_bytes:
        pytest.skip(f"this machine has none to give: {pages.reason}")
    assert data_address(array) == address
    assert mx.array_equal(array, before).item()
    assert _huge_bytes_around(address, array.nbytes) >= pages.covered_bytes - 2 * SIZE


def _huge_bytes_around(address: int, count: int) -> int:
    """Bytes in huge pages of the mappings that hold the range."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and ":" not in first:
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start < address + count and address < end
        elif inside and first == "AnonHugePages:":
            total += int(rest.split()[0]) << 10
    return total
