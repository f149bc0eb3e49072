"""Decode steps as compiled functions: MLX replays the graph that was traced once, instead of
building it anew from Python.

Symbols: S sequences, Tb rows after padding, W entries of the tables after padding, V tokens.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt.attention import (
    HostRows,
    PagedLayer,
    StepBinding,
    StepMetadata,
    bind_pools,
    pools_of,
)
from mlxrt.attention.transfer import Numbers, to_device
from mlxrt.engine.batch import Batch
from mlxrt.engine.sampling import Sampler, SamplingBatch, sample

FUNCTIONS_MAX = 128
"""Compiled functions that are kept; the one that was used longest ago makes room."""
_LEAST_WIDTH = 8
_LEAST_POSITIONS = 1024
_STEPS_OF_OCTAVE = 8

Head = Callable[[mx.array], mx.array]


class _Output(enum.Enum):
    """Logits, or tokens: of greedy rows, or by a table of rules that comes in with the rows."""

    LOGITS = enum.auto()
    GREEDY = enum.auto()
    DRAWN = enum.auto()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a function is traced for.

    Attributes:
        row_count: Tb.
        width: W.
        positions: by group, as `NativePath.prepare_decode` takes it.
        output: what comes out.
    """

    row_count: int
    width: int
    positions: tuple[int, ...]
    output: _Output


@dataclass(slots=True)
class CompileCounts:
    """Traces so far: steps whose shape no compiled function was kept for."""

    traces: int = 0


class CompiledSteps:
    """The compiled decode steps of one model over its pool. Owned by the engine's thread.

    Attributes:
        counts: what was traced.
    """

    def __init__(
        self,
        logits_of: Head,
        bindings: Sequence[StepBinding],
        layers: Sequence[PagedLayer],
        sampler: Sampler,
        *,
        is_fused: bool,
    ) -> None:
        """Takes `logits_of`, from token ids [Tb] to logits [Tb, V], through `layers`."""
        self.counts = CompileCounts()
        self._logits_of = logits_of
        self._bindings = bindings
        self._layers = layers
        self._sampler = sampler
        self._is_fused = is_fused
        self._functions: OrderedDict[_Shape, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._functions)

    def greedy(self, batch: Batch, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """Adds a step to the graph; returns `Sampled`'s tokens and finite, [Tb] each.

        Args:
            batch: one that `is_plain_decode`.
            tokens: [Tb] int32.
        """
        sampled, finite = self._call(batch, tokens, _Output.GREEDY)
        return sampled, finite

    def drawn(
        self, batch: Batch, tokens: mx.array, rules: NDArray[np.float32]
    ) -> tuple[mx.array, mx.array]:
        """As `greedy`, by rules [S, 5] as `Sampler.table` gives them."""
        padding = batch.bucket_row_count - len(rules)
        if padding:
            rules = np.concatenate([rules, np.repeat(rules[-1:], padding, axis=0)])
        sampled, finite = self._call(batch, tokens, _Output.DRAWN, rules)
        return sampled, finite

    def logits(self, batch: Batch, tokens: mx.array) -> mx.array:
        """As `greedy`, without the sampling: [Tb, V]."""
        (logits,) = self._call(batch, tokens, _Output.LOGITS)
        return logits

    def _call(
        self,
        batch: Batch,
        tokens: mx.array,
        output: _Output,
        rules: NDArray[np.float32] | None = None,
    ) -> list[mx.array]:
        row_count = batch.bucket_row_count
        width = table_width(batch.groups[0].block_tables.shape[1])
        positions = tuple(
            _positions_hint(host, binding.window)
            for host, binding in zip(batch.groups, self._bindings, strict=True)
        )
        shape = _Shape(row_count, width, positions, output)
        function = self._functions.get(shape)
        if function is None:
            function = self._functions[shape] = mx.compile(self._body(shape))
            if len(self._functions) > FUNCTIONS_MAX:
                self._functions.popitem(last=False)
        self._functions.move_to_end(shape)
        counts = self._bindings[0].path.counts
        native, fused, steps = counts.native, counts.fused, self._sampler.steps
        numbers = _arrays(batch.groups, row_count, width)
        rows = to_device(numbers if rules is None else [rules, *numbers])
        outputs, pools = function(tokens, rows, pools_of(self._layers))
        counts.native = native + len(self._layers)
        counts.fused = fused + self._is_fused * len(self._layers)
        self._sampler.steps = steps + (output is not _Output.LOGITS)
        bind_pools(self._layers, pools)
        found: list[mx.array] = outputs
        return found

    def _body(self, shape: _Shape) -> Callable[..., tuple[list[mx.array], list[mx.array]]]:
        def step(
            tokens: mx.array, rows: list[mx.array], pools: list[mx.array]
        ) -> tuple[list[mx.array], list[mx.array]]:
            self.counts.traces += 1
            bind_pools(self._layers, pools)
            rules = rows[:1]
            if shape.output is _Output.DRAWN:
                rows = rows[1:]
            positions, query_start, context_len, *by_group = rows
            for group, binding in enumerate(self._bindings):
                slots, tables = by_group[2 * group : 2 * group + 2]
                metadata = StepMetadata(None, positions, slots, query_start, context_len, tables)
                binding.begin_decode(metadata, shape.positions[group])
            try:
                logits = self._logits_of(tokens)
            finally:
                for binding in self._bindings:
                    binding.end()
            outputs = [logits]
            if shape.output is _Output.GREEDY:
                greedy = SamplingBatch.greedy(shape.row_count)
                sampled = sample(logits, greedy, sampler=self._sampler)
                outputs = [sampled.tokens, sampled.finite]
            elif shape.output is _Output.DRAWN:
                picked = self._sampler.pick_by(logits, rules[0])
                assert picked.finite is not None
                outputs = [picked.tokens, picked.finite]
            return outputs, pools_of(self._layers)

        return step


def is_plain_decode(batch: Batch) -> bool:
    """Whether every sequence of the step has one row, which samples and answers no logits."""
    selection = batch.selection
    count = len(batch.handles)
    return (
        batch.prompt is None
        and batch.row_count == len(selection.sequences) == len(selection.sampled) == count
        and not selection.logits
    )


def table_width(block_count: int) -> int:
    """The smallest W of a grid, with eight steps an octave, that is at least `block_count`: few
    shapes, and of a wide table at most an eighth is padding.
    """
    octave = 1 << (max(block_count, 2) - 1).bit_length() - 1
    step = max(_LEAST_WIDTH, octave // _STEPS_OF_OCTAVE)
    return -(-block_count // step) * step


def _positions_hint(host: HostRows, window: int) -> int:
    """A power of two that is at least what the rows see together."""
    seen = np.minimum(host.context_len, window + 1) if window else host.context_len
    return max(_LEAST_POSITIONS, 1 << (int(seen.sum()) - 1).bit_length())


def _arrays(groups: Sequence[HostRows], row_count: int, width: int) -> list[Numbers]:
    """What a compiled step takes of the host: positions, query_start, context_len, then slots and
    tables of each group; as `HostRows`, with a sequence without rows for each padding row.
    """
    first = groups[0]
    query_start = _padded(first.query_start, row_count + 1, int(first.query_start[-1]))
    context_len = _padded(first.context_len, row_count, 0)
    arrays: list[Numbers] = [first.positions, query_start, context_len]
    for host in groups:
        tables = np.zeros((row_count, width), np.int32)
        count, held = host.block_tables.shape
        tables[:count, :held] = host.block_tables
        arrays += [host.slots, tables]
    return arrays


def _padded(values: NDArray[np.int32], count: int, filler: int) -> NDArray[np.int32]:
    padded = np.full(count, filler, np.int32)
    padded[: len(values)] = values
    return padded
