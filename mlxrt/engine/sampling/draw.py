"""Rules 3 to 7: temperature, truncation and the draw itself."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlxrt.engine.sampling.cumulative import first_reaching
from mlxrt.engine.sampling.rules import Draws
from mlxrt.engine.sampling.truncation import thresholds


@dataclass(frozen=True, slots=True)
class Drawn:
    """The R drawn rows.

    Attributes:
        tokens: [R] int32.
        kept: [R, V] float32 logits after rules 1 to 6, up to one constant per row; minus infinity
            where excluded.
    """

    tokens: mx.array
    kept: mx.array


def draw(adjusted: mx.array, draws: Draws) -> Drawn:
    """Draws one token for each row of `draws` from the logits after rules 1 and 2.

    A row with NaN or plus infinity gives token 0: none of its weights is positive.

    Args:
        adjusted: [S, V] any float dtype.
        draws: the R rows and their rules.
    """
    count = draws.uniform.shape[0]
    logits = adjusted[:count] if draws.rows is None else adjusted[draws.rows]
    scaled = scale(logits, draws.temperature)
    least = thresholds(scaled, draws)
    kept = scaled if least is None else mx.where(scaled >= least, scaled, -mx.inf)
    tokens = first_reaching(mx.exp(kept), draws.uniform, inclusive=False)
    return Drawn(tokens.squeeze(-1), kept)


def scale(logits: mx.array, temperature: mx.array | None) -> mx.array:
    """Applies rule 3 to [R, V] logits: float32, the largest of a row 0.

    Args:
        temperature: [R, 1] float32; None where all are 1.
    """
    # Later rules look at differences alone; with the largest logit at 0 no temperature overflows
    # them.
    logits = logits.astype(mx.float32)
    scaled = logits - mx.max(logits, axis=-1, keepdims=True)
    return scaled if temperature is None else scaled / temperature
