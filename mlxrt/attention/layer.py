"""A layer's KV in the paged pool, with the interface that mlx-lm's attention modules expect of a
cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from mlxrt.attention.heads import HeadRules
from mlxrt.attention.metadata import StepMetadata
from mlxrt.attention.path import AttentionPath


class WindowMask:
    """Stands for a sliding window on its way from `make_mask` through the model to `attend`.

    Attributes:
        window: positions that a row sees, itself included.
    """

    __slots__ = ("window",)

    def __init__(self, window: int) -> None:
        self.window = window


class StepBinding:
    """The step that the layers of one group serve now. Owned by the engine's thread.

    Attributes:
        window: positions that a row of the group's layers sees, itself included; 0 for all.
        attended: attention calls that have reached the group's layers in this step.
    """

    __slots__ = ("attended", "path", "positions", "prepared", "window")

    def __init__(self, path: AttentionPath, window: int = 0) -> None:
        self.path = path
        self.window = window
        self.positions: mx.array | None = None
        self.prepared: Any = None
        self.attended = 0

    def begin(self, metadata: StepMetadata) -> None:
        """Makes `metadata` what the group's layers use from now on."""
        self.positions = metadata.positions
        self.prepared = self.path.prepare(metadata, self.window)
        self.attended = 0

    def begin_decode(self, metadata: StepMetadata, positions: int) -> None:
        """As `begin`, for a compiled step on the native path; see `NativePath.prepare_decode`."""
        self.positions = metadata.positions
        self.prepared = self.path.prepare_decode(metadata, positions)
        self.attended = 0

    def end(self) -> None:
        """Forgets the step, so that its arrays can be freed."""
        self.positions = None
        self.prepared = None


class PagedLayer:
    """The `cache=` of one layer, for a step of T rows of one token each.

    Attributes:
        keys, values: the layer's pool, `[num_blocks, block_size, Hkv, D]`; rebound by every write.
    """

    __slots__ = ("_binding", "keys", "values")

    def __init__(self, keys: mx.array, values: mx.array, binding: StepBinding) -> None:
        self.keys = keys
        self.values = values
        self._binding = binding

    @property
    def offset(self) -> mx.array:
        """Positions of the rows, `[T]` int32; what RoPE takes as its offset."""
        positions = self._binding.positions
        if positions is None:
            raise RuntimeError("a paged layer was used outside of a step")
        return positions

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Writes the rows' K and V, `[T, Hkv, 1, D]`, to their slots; returns them as they came."""
        binding = self._binding
        self.keys, self.values = binding.path.write(
            self.keys, self.values, (keys.squeeze(2), values.squeeze(2)), binding.prepared
        )
        return keys, values

    def norm_rope_write(self, qkv: mx.array, rules: HeadRules) -> mx.array:
        """Norms and turns the heads in `qkv`, [T, (Hq + 2 Hkv) * D], and writes K and V to the
        rows' slots; returns the queries, `[T, Hq, D]`. The native path alone has it.
        """
        binding = self._binding
        queries, self.keys, self.values = binding.path.norm_rope_write(
            qkv, rules, self.offset, (self.keys, self.values), binding.prepared
        )
        return queries

    def make_mask(
        self, row_length: int, return_array: bool = False, window_size: int | None = None
    ) -> WindowMask | None:
        """The marker that rides to `attend` in place of a mask; rows are one token long."""
        if row_length != 1:
            raise RuntimeError(f"a paged layer serves rows of one token, not of {row_length}")
        return WindowMask(window_size) if window_size else None

    def attend(
        self, queries: mx.array, *, scale: float, mask: Any, sinks: mx.array | None
    ) -> mx.array:
        """Attention of the rows, `[T, Hq, 1, D]`, each over its own context; same shape.

        Raises:
            RuntimeError: the family passes a mask of its own, or another window than the group's.
        """
        if mask is not None and not isinstance(mask, WindowMask):
            raise RuntimeError(f"a paged layer can't serve a mask of type {type(mask).__name__}")
        binding = self._binding
        window = 0 if mask is None else mask.window
        if window != binding.window:
            raise RuntimeError(
                f"a layer attends with window {window}, its group's {binding.window}"
            )
        return self.attend_rows(queries.squeeze(2), scale=scale, sinks=sinks)[:, :, None]

    def attend_rows(
        self, queries: mx.array, *, scale: float, sinks: mx.array | None = None
    ) -> mx.array:
        """The same of `[T, Hq, D]`, with the group's window; returns `[T, Hq, Dv]`."""
        binding = self._binding
        binding.attended += 1
        return binding.path.attend(
            queries,
            (self.keys, self.values),
            binding.prepared,
            scale=scale,
            window=binding.window,
            sinks=sinks,
        )


def pools_of(layers: Iterable[PagedLayer]) -> list[mx.array]:
    """The pools of `layers`: K and V of each in turn."""
    return [array for layer in layers for array in (layer.keys, layer.values)]


def bind_pools(layers: Iterable[PagedLayer], pools: Sequence[mx.array]) -> None:
    """Rebinds `layers` to `pools`, in the order of `pools_of`."""
    for index, layer in enumerate(layers):
        layer.keys, layer.values = pools[2 * index], pools[2 * index + 1]
