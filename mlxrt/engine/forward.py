"""Builds the lazy graph of a step: copies, forward, sampling. Nothing here evaluates. Owned by the
engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from mlxrt.attention import (
    AttentionPath,
    PagedLayer,
    StepBinding,
    StepMetadata,
    bind_pools,
    pools_of,
)
from mlxrt.attention.transfer import readable, readable_copy, to_device
from mlxrt.core.step import SampledRow
from mlxrt.engine.batch import Batch
from mlxrt.engine.compiled import CompiledSteps, is_plain_decode
from mlxrt.engine.mirrors import decode_pending
from mlxrt.engine.prompt_rows import CHUNK, PromptRows, PromptValues
from mlxrt.engine.sampling import Sampled, Sampler, SamplingBatch, sample
from mlxrt.engine.sampling.logprobs import logprobs
from mlxrt.engine.sampling.rules import LogprobGroup
from mlxrt.engine.sampling.sampled import LogprobArrays
from mlxrt.models.rows import RowSelector


@dataclass(frozen=True, slots=True)
class StepValues:
    """What was read of a step.

    Attributes:
        tokens: one per selected row.
        details: by selected row, for those that have more than a token or failed.
        logits: [n, V], one row per selection that answers logits; None without any.
        prompt: of the rows that answer logprobs of the prompt; None without any.
    """

    tokens: list[int]
    details: dict[int, SampledRow]
    logits: NDArray[np.float32] | None
    prompt: PromptValues | None = None


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A step that is built and not yet evaluated.

    Attributes:
        sampled: tokens and what else was asked for; None where no row is selected.
        logits: [n, V] float32 of the rows that answer them; None without any.
        witness: one element of the last layer's pool, so that a step without tokens can be waited
            for.
        hidden: [K + P, 1, hidden] of the selected and the prompt's rows, where head and sampling
            come later.
        prompt: logprobs of the prompt, in pieces.
        is_compiled: the forward was replayed rather than built.
    """

    sampled: Sampled | None
    logits: mx.array | None
    witness: mx.array | None
    hidden: mx.array | None = None
    prompt: tuple[LogprobArrays, ...] = ()
    is_compiled: bool = False

    signal: mx.array = field(init=False)
    """The sampled tokens once more, or the witness: for the thread that reads, and for it alone."""

    def __post_init__(self) -> None:
        # Two threads must not wait for one array, nor may one wait for what another builds on:
        # the next step is built on the tokens.
        object.__setattr__(self, "signal", readable_copy(self.arrays()[0]))

    def arrays(self) -> list[mx.array]:
        """What the device has to compute, the signal left out."""
        arrays = [] if self.sampled is None else self.sampled.arrays()
        rest = (self.logits, self.witness, self.hidden)
        arrays += [array for array in rest if array is not None]
        return arrays + [array for piece in self.prompt for array in piece.arrays()]

    def wait(self) -> None:
        """Waits for the device. Raises what the device did."""
        np.array(self.signal)

    def read(self) -> StepValues:
        """Reads the step after `wait`, on the same thread. Raises what the device did."""
        logits = None if self.logits is None else np.array(self.logits)
        prompt = _read_prompt(self.prompt)
        if self.sampled is None:
            return StepValues([], {}, logits, prompt)
        return StepValues(*self.sampled.read(np.array(self.signal)), logits, prompt)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share a block table.

    Attributes:
        indices: the layers' places in the model; `layers` are parallel.
    """

    binding: StepBinding
    indices: Sequence[int]
    layers: Sequence[PagedLayer]


class Forward:
    """A model over its paged pool.

    Attributes:
        path: how attention is computed.
        sampler: who picks the tokens.
        layers: the pool, layer by layer.
        group_count: groups of layers that share a table.
        compiled: the compiled decode steps; None where every step is built.
    """

    def __init__(
        self,
        model: Module,
        selector: RowSelector,
        groups: Sequence[LayerGroup],
        path: AttentionPath,
        sampler: Sampler,
        *,
        compiles: bool = False,
        is_fused: bool = False,
    ) -> None:
        self.path = path
        self.sampler = sampler
        self.layers = _in_model_order(groups)
        self.group_count = len(groups)
        self._model = model
        self._selector = selector
        self._groups = groups
        self.compiled: CompiledSteps | None = None
        if compiles:
            bindings = [group.binding for group in groups]
            self.compiled = CompiledSteps(
                self._decode_logits, bindings, self.layers, sampler, is_fused=is_fused
            )

    def pools(self) -> list[mx.array]:
        """The pool's arrays."""
        return pools_of(self.layers)

    def restore(self, pools: Sequence[mx.array]) -> None:
        """Rebinds the layers to `pools`, as `pools()` gave them."""
        bind_pools(self.layers, pools)

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Adds block copies, `(group, source, destination)`, to the graph."""
        for number, group in enumerate(self._groups):
            pairs = np.array([copy[1:] for copy in copies if copy[0] == number], np.int32)
            if not len(pairs):
                continue
            sources, destinations = mx.array(pairs[:, 0]), mx.array(pairs[:, 1])
            pools = pools_of(group.layers)
            bind_pools(group.layers, self.path.copy_blocks(pools, sources, destinations))

    def poison(self) -> None:
        """Fills the pool with NaN and evaluates it."""
        for layer in self.layers:
            layer.keys = mx.full(layer.keys.shape, float("nan"), dtype=layer.keys.dtype)
            layer.values = mx.full(layer.values.shape, float("nan"), dtype=layer.values.dtype)
            mx.eval(layer.keys, layer.values)

    def build(
        self, batch: Batch | None, sampling: SamplingBatch | None, unread: mx.array | None
    ) -> StepGraph:
        """Adds the forward and the sampling of `batch` to the graph.

        Args:
            sampling: the rules of the selected rows; None where none is selected.
            unread: [n] int32, tokens of the step before, which may still be on the device.
        """
        if batch is None:
            return StepGraph(None, None, self._witness())
        if self.compiled is not None and sampling is not None and is_plain_decode(batch):
            return self._build_compiled(self.compiled, batch, sampling, unread)
        logits, hidden = self._run(batch, unread)
        if batch.prompt is not None:
            return self.build_sampling(hidden, batch, sampling, unread)
        if sampling is None:
            # The head is built, but nothing evaluates it.
            return StepGraph(None, None, self._witness())
        return self._sampled(logits, batch, sampling, unread)

    def _build_compiled(
        self,
        compiled: CompiledSteps,
        batch: Batch,
        sampling: SamplingBatch,
        unread: mx.array | None,
    ) -> StepGraph:
        ids = _with_unread(batch.tokens, batch.parity, unread, batch.row_count)
        if sampling.is_greedy:
            tokens, finite = compiled.greedy(batch, ids)
            sampled = Sampled(batch.row_count, tokens, readable(finite))
        elif (rules := self.sampler.table(sampling)) is not None:
            tokens, finite = compiled.drawn(batch, ids, rules)
            sampled = Sampled(batch.row_count, tokens, readable(finite))
        else:
            # Padding rows too: to leave them out would take one more operation.
            sampled = sample(compiled.logits(batch, ids), sampling, unread, sampler=self.sampler)
        return StepGraph(sampled, None, None, is_compiled=True)

    def _decode_logits(self, tokens: mx.array) -> mx.array:
        """Logits [T, V] of rows whose step the groups' bindings have begun."""
        try:
            logits: mx.array = self._model(tokens[:, None], cache=self.layers).squeeze(1)
            self._check_seam()
            return logits
        finally:
            self._selector.kept = None

    def build_hidden(self, batch: Batch | None, unread: mx.array | None) -> StepGraph:
        """Adds the forward of `batch` to the graph, up to the head."""
        if batch is None:
            return StepGraph(None, None, self._witness())
        _, hidden = self._run(batch, unread)
        witness = self._witness()
        if hidden.shape[0]:
            # There when the hidden states are.
            witness = hidden.reshape(-1)[:1].astype(mx.float32)
        return StepGraph(None, None, witness, hidden)

    def build_sampling(
        self,
        hidden: mx.array,
        batch: Batch,
        sampling: SamplingBatch | None,
        unread: mx.array | None = None,
    ) -> StepGraph:
        """Adds heads and sampling to the graph.

        Args:
            hidden: [K + P, 1, hidden], of the selected rows, then of the prompt's.
            sampling, unread: as for `build`.
        """
        count = len(batch.selected_sequences)
        prompt: tuple[LogprobArrays, ...] = ()
        if batch.prompt is not None:
            prompt = self._describe(hidden[count:], batch, batch.prompt, unread)
        if sampling is None:
            return StepGraph(None, None, self._witness(), prompt=prompt)
        return self._sampled(self._head(hidden[:count]), batch, sampling, unread, prompt)

    def _describe(
        self, hidden: mx.array, batch: Batch, prompt: PromptRows, unread: mx.array | None
    ) -> tuple[LogprobArrays, ...]:
        """Logprobs of the prompt's tokens, one piece after the other: a piece's logits are gone
        before those of the next.
        """
        tokens = _with_unread(prompt.tokens, batch.parity, unread, len(prompt.tokens))
        pieces: list[LogprobArrays] = []
        for start in range(0, hidden.shape[0], CHUNK):
            rows = hidden[start : start + CHUNK]
            if pieces:
                rows = mx.depends(rows, pieces[-1].arrays())
            logits = self._head(rows)
            group = LogprobGroup.of_all(rows.shape[0], min(prompt.depth, logits.shape[-1]))
            pieces.append(logprobs(group, logits, tokens[start : start + CHUNK]))
        return tuple(pieces)

    def _run(self, batch: Batch, unread: mx.array | None) -> tuple[mx.array, mx.array]:
        """Logits and hidden states [K + P, 1, hidden] of the selected rows and the prompt's."""
        self._begin(batch)
        try:
            tokens = _with_unread(batch.tokens, batch.parity, unread, batch.row_count)[:, None]
            self._selector.rows = _upload(_head_rows(batch))
            logits = self._model(tokens, cache=self.layers).squeeze(1)
            self._check_seam()
            hidden = self._selector.kept
            assert hidden is not None
            return logits, hidden
        finally:
            self._selector.rows = self._selector.kept = None
            for group in self._groups:
                group.binding.end()

    def _head(self, hidden: mx.array) -> mx.array:
        """Logits [K, V] of hidden states [K, 1, hidden]."""
        self._selector.given = hidden
        try:
            ignored = mx.zeros((hidden.shape[0], 1), mx.int32)
            logits: mx.array = self._model(ignored, cache=self.layers).squeeze(1)
            return logits
        finally:
            self._selector.given = None

    def _sampled(
        self,
        logits: mx.array,
        batch: Batch,
        sampling: SamplingBatch,
        unread: mx.array | None,
        prompt: tuple[LogprobArrays, ...] = (),
    ) -> StepGraph:
        answered = None
        if batch.selection.logits:
            chosen = mx.array(np.array(batch.selection.logits, np.int32))
            answered = logits[chosen].astype(mx.float32)
        sampled = sample(logits, sampling, unread, sampler=self.sampler)
        return StepGraph(sampled, answered, None, prompt=prompt)

    def _begin(self, batch: Batch) -> None:
        metadata = StepMetadata.from_host(batch.groups[0])
        self._groups[0].binding.begin(metadata)
        for group, host in zip(self._groups[1:], batch.groups[1:], strict=True):
            group.binding.begin(metadata.in_group(host))

    def _check_seam(self) -> None:
        """Raises RuntimeError unless every layer attended: without the seam a model would compute
        something else.
        """
        attended = sum(group.binding.attended for group in self._groups)
        if attended != len(self.layers):
            raise RuntimeError(f"{attended} of {len(self.layers)} layers attended to the pool")

    def _witness(self) -> mx.array:
        last = self.layers[-1]
        # numpy, which reads it, has no bfloat16.
        return mx.stack([pool.reshape(-1)[0] for pool in (last.keys, last.values)]).astype(
            mx.float32
        )


def _in_model_order(groups: Sequence[LayerGroup]) -> list[PagedLayer]:
    placed = {
        index: layer
        for group in groups
        for index, layer in zip(group.indices, group.layers, strict=True)
    }
    return [placed[index] for index in range(len(placed))]


def _upload(rows: np.ndarray[tuple[int], np.dtype[np.int32]] | None) -> mx.array | None:
    return None if rows is None else mx.array(rows)


def _head_rows(batch: Batch) -> NDArray[np.int32] | None:
    """[K + P] index into T; None for all rows."""
    if batch.prompt is None:
        return batch.selected_rows
    selected = batch.selected_rows
    if selected is None:
        selected = np.arange(batch.bucket_row_count, dtype=np.int32)
    return np.concatenate([selected, batch.prompt.rows])


def _read_prompt(pieces: tuple[LogprobArrays, ...]) -> PromptValues | None:
    if not pieces:
        return None
    none = np.zeros((sum(len(piece.group.rows) for piece in pieces), 0))
    tops = [(p.top_ids, p.top_logprobs) for p in pieces if p.top_ids is not None]
    return PromptValues(
        np.concatenate([np.array(piece.logprobs) for piece in pieces]),
        np.concatenate([np.array(piece.ranks) for piece in pieces]),
        np.concatenate([np.array(ids) for ids, _ in tops]) if tops else none.astype(np.int32),
        np.concatenate([np.array(v) for _, v in tops]) if tops else none.astype(np.float32),
    )


def _with_unread(
    tokens: NDArray[np.int32], parity: int, unread: mx.array | None, count: int
) -> mx.array:
    """`tokens` [n] int32, those still on the device taken from `unread`; `parity` is the step's.
    Past `count` lies padding, which may come out as any token.
    """
    coded = tokens < 0
    if not coded.any():
        return to_device((tokens,))[0]
    if unread is None:
        raise RuntimeError("a row takes a token that no step in flight samples")
    # The codes are of the step before, whose parity is the other one.
    indices = np.where(coded, decode_pending(tokens, 1 - parity), 0)
    as_they_are = coded[:count].all() and (indices[:count] == np.arange(count)).all()
    if as_they_are and len(indices) == unread.shape[0]:
        return unread
    known = mx.array(np.where(coded, 0, tokens))
    return mx.where(mx.array(coded), unread[mx.array(indices)], known)
