"""What the engine must know of the device that MLX runs on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Device:
    """The default device.

    Attributes:
        kind: "cpu", "metal" or "cuda".
        name: as MLX gives it; empty where it gives none.
        memory_bytes: what this process may count on: the recommended working set on Metal, free
            memory on CUDA, physical memory, or the container's share of it, on a CPU.
    """

    kind: str
    name: str
    memory_bytes: int

    @property
    def description(self) -> str:
        """Kind and name, as GetServerInfo answers them."""
        return f"{self.kind} {self.name}".strip()


def current_device() -> Device:
    """Returns the default device of the calling thread."""
    if mx.default_device() == mx.Device(mx.cpu):
        info = mx.device_info(mx.Device(mx.cpu))
        return Device("cpu", str(info.get("device_name", "")), _host_memory_bytes())
    info = mx.device_info()
    name = str(info.get("device_name", ""))
    if mx.metal.is_available():
        return Device("metal", name, int(info["max_recommended_working_set_size"]))
    return Device("cuda", name, int(info["free_memory"]))


def _host_memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        try:
            content = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if content.isdigit():
            limits.append(int(content))
    return min(limits)
