"""The inverse frequencies of a rotary embedding, as `norm_rope_write` takes them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def inverse_frequencies(
    dims: int, *, base: float | None = None, freqs: mx.array | None = None
) -> mx.array:
    """Returns [dims / 2] float32: what mx.fast.rope multiplies positions by on the default device.

    With `freqs` to the last bit; with `base` to the last bit on a CPU, on a GPU to 2 units in the
    last place, since its own power of two can't be had outside of a kernel.

    Args:
        dims: Entries of a head that turn, even and positive.
        base: As `base` of mx.fast.rope.
        freqs: [dims / 2], as `freqs` of mx.fast.rope: what positions are divided by. Exactly one of
            the two.

    Raises:
        ValueError: dims is not even and positive, or freqs does not fit it, or not exactly one of
            base and freqs is given.
    """
    if dims <= 0 or dims % 2:
        raise ValueError(f"dims must be even and positive, got {dims}")
    if (base is None) == (freqs is None):
        raise ValueError("exactly one of base and freqs must be given")
    half = dims // 2
    if freqs is not None:
        if freqs.shape != (half,):
            raise ValueError(f"freqs must have shape ({half},), got {freqs.shape}")
        return mx.reciprocal(freqs.astype(mx.float32))
    single = np.float32(base)
    if mx.default_device() == mx.cpu:
        exponents = mx.arange(0, -half, -1, dtype=mx.float32)
        return mx.exp(exponents * mx.array(np.log(single) / np.float32(half)))
    shares = np.arange(half, dtype=np.float32) / np.float32(half)
    powers = np.exp2((-shares * np.log2(single)).astype(np.float64))
    return mx.array(powers.astype(np.float32))
