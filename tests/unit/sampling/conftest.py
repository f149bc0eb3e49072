"""The sampling rules a second time: NumPy, float64, row by row, straight from sampling.proto."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from mlxrt import kernels
from mlxrt.core.sampling import Sampling
from mlxrt.core.step import SampledRow
from mlxrt.engine.sampling import PlainSampler, Sampler, SamplingBatch, SamplingRow, sample
from mlxrt.engine.sampling.native import NativeSampler

Floats = npt.NDArray[np.float64]
MASK = (1 << 64) - 1


def reference_uniform(seed: int, position: int) -> float:
    """u(seed, position) in integers of any size."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    return (mix((mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) & MASK) >> 40) / float(1 << 24)


def reference_adjusted(
    logits: Sequence[float], s: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> Floats:
    """Rules 1 and 2."""
    l = np.array(logits, np.float64)  # noqa: E741
    for token, bias in s.logit_bias:
        l[token] += bias
    for i in set(prompt) | set(generated):
        l[i] = l[i] / s.repetition_penalty if l[i] > 0 else l[i] * s.repetition_penalty
    for i in set(generated):
        l[i] -= s.frequency_penalty * list(generated).count(i) + s.presence_penalty
    return l


def softmax(l: Floats) -> Floats:  # noqa: E741
    e = np.exp(l - l.max())
    return e / e.sum()


@dataclass
class Chosen:
    """What the rules choose, and how far the nearest boundary is (in probability or in logits)."""

    token: int
    margin: float
    kept: npt.NDArray[np.bool_]
    probabilities: Floats


def reference_choose(adjusted: Floats, s: Sampling, u: float) -> Chosen:
    """Rules 3 to 7."""
    if s.temperature == 0:
        top = np.sort(adjusted)[::-1]
        margin = float(top[0] - top[1]) if len(top) > 1 else math.inf
        everything = np.ones(len(adjusted), bool)
        return Chosen(int(adjusted.argmax()), margin, everything, softmax(adjusted))
    l = adjusted / s.temperature  # noqa: E741
    kept = np.ones(len(l), bool)
    margins = [math.inf]
    if s.min_p > 0:
        bound = l.max() + math.log(s.min_p)
        kept &= l >= bound
        margins.append(float(np.abs(l - bound)[l < l.max()].min(initial=math.inf)))
    if s.top_k and s.top_k < kept.sum():
        kept &= l >= np.sort(l[kept])[::-1][s.top_k - 1]
    if s.top_p < 1:
        p = np.where(kept, softmax(np.where(kept, l, -np.inf)), 0)
        candidates = np.unique(p[kept])[::-1]
        sums = np.array([p[p >= t].sum() for t in candidates])
        reaching = np.flatnonzero(sums >= s.top_p)
        t = candidates[reaching[0]] if len(reaching) else candidates[-1]
        kept &= p >= t
        margins.append(float(np.abs(sums - s.top_p).min()))
    p = softmax(np.where(kept, l, -np.inf))
    sums = np.cumsum(p)
    margins.append(float(np.abs(sums - u)[p > 0].min()))
    over = np.flatnonzero(sums > u)
    token = int(over[0]) if len(over) else int(np.flatnonzero(kept)[-1])
    return Chosen(token, min(margins), kept, p)


Run = Callable[..., tuple[list[int], dict[int, SampledRow]]]


@pytest.fixture(params=[PlainSampler, NativeSampler], ids=["plain", "native"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    made: Sampler = request.param()
    return made


@pytest.fixture
def run(sampler: Sampler) -> Run:
    """Samples `[S, V]` NumPy logits under rows and reads the result; asserts who sampled."""

    def call(
        logits: npt.NDArray[np.float32],
        rows: Sequence[SamplingRow | None],
        pending: Sequence[int] | None = None,
        dtype: mx.Dtype = mx.float32,
    ) -> tuple[list[int], dict[int, SampledRow]]:
        batch = SamplingBatch.build(rows, logits.shape[1])
        tokens = None if pending is None else mx.array(pending, mx.int32)
        kernels.reset_counters()
        sampled = sample(mx.array(logits).astype(dtype), batch, tokens, sampler=sampler)
        read = sampled.read(np.array(sampled.tokens))
        assert kernels.counters()["sample"] == int(sampler.name == "native")
        return read

    return call


@dataclass(frozen=True)
class Reference:
    """The reference functions, for tests that can't import a neighbouring file."""

    uniform: Callable[[int, int], float] = reference_uniform
    adjusted: Callable[..., Floats] = reference_adjusted
    choose: Callable[..., Chosen] = reference_choose
    softmax: Callable[[Floats], Floats] = softmax

    def row(
        self, logits: npt.NDArray[np.float32], row: SamplingRow, pending: Sequence[int] = ()
    ) -> Chosen:
        """All rules of a row; `pending` are the tokens that its pending indices stand for."""
        generated = [*row.generated.tolist(), *pending]
        adjusted = self.adjusted(logits, row.sampling, row.prompt.tolist(), generated)
        return self.choose(adjusted, row.sampling, self.uniform(row.seed, row.position))


@pytest.fixture
def reference() -> Reference:
    return Reference()
