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


def draw(adjusted: mx.array, finite: mx.array, draws: Draws) -> Drawn:
    """Draws one token for each row of `draws` from the logits after rules 1 and 2.

    Args:
        adjusted: [S, V] any float dtype.
        finite: [S] bool; a row that is not is drawn from as if all its logits were equal.
        draws: the R rows and their rules.
    """
    if draws.rows is None:
        count = draws.uniform.shape[0]
        logits, usable = adjusted[:count], finite[:count]
    else:
        logits, usable = adjusted[draws.rows], finite[draws.rows]
    logits = logits.astype(mx.float32)
    # Later rules look at differences alone; with the largest logit at 0 no temperature overflows
    # them.
    shifted = logits - mx.max(logits, axis=-1, keepdims=True)
    # NaN has no order: no sort may see it.
    scaled = mx.where(usable[:, None], shifted, 0.0)
    if draws.temperature is not None:
        scaled = scaled / draws.temperature
    least = thresholds(scaled, draws)
    kept = scaled if least is None else mx.where(scaled >= least, scaled, -mx.inf)
    tokens = first_reaching(mx.exp(kept), draws.uniform, inclusive=False)
    return Drawn(tokens.squeeze(-1), kept)
