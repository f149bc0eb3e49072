"""What an engine has done so far; the tests' and the benchmarks' proof of which path ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineCounters:
    """Counts since the engine was ready; warm-up steps are not in them.

    Attributes:
        steps: plans with device work.
        rows: rows of their forwards, without padding.
        padding_rows: rows added to reach a bucket.
        head_rows: rows that went through the head: those that sample or answer logits.
        async_evals: launches; one per step.
        drafts, accepted_drafts: draft tokens verified, and how many of them were accepted.
        compiled_steps: steps whose forward was replayed rather than built.
        traces: of those, the ones whose shape was new, or too long ago, and so had to be traced.
        failed_steps: steps that failed whole.
        failed_sequences: sequences that failed alone.
        attend_native, attend_gather: attention calls of layers, by path.
        sample_native, sample_plain: steps sampled, by sampler.
        fused_layers: layers that ran in fused operations.
        peak_bytes: the most memory that MLX held.
    """

    steps: int = 0
    rows: int = 0
    padding_rows: int = 0
    head_rows: int = 0
    async_evals: int = 0
    drafts: int = 0
    accepted_drafts: int = 0
    compiled_steps: int = 0
    traces: int = 0
    failed_steps: int = 0
    failed_sequences: int = 0
    attend_native: int = 0
    attend_gather: int = 0
    sample_native: int = 0
    sample_plain: int = 0
    fused_layers: int = 0
    peak_bytes: int = 0
