"""mlx-lm alone, unpatched, as a process of its own: the numbers that mlxrt is held against.

`python -m mlxrt.check.oracle MODEL DTYPE BLAS COUNT OUT` reads a JSON list of prompts (lists of
token ids) from its input. It generates COUNT tokens greedily after each with mlx-lm's own cache,
and writes to OUT (npz), for prompt i, `tokens_i` (int64: prompt and generated) and `logits_i`
([len(tokens), vocabulary_size] float32: the logits after each token, of one dense run). DTYPE
"stored" casts nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """See the module."""
    model_path, dtype, blas_choice, count, out = sys.argv[1:6]
    from mlxrt.launch import choose_blas

    choose_blas(blas_choice)
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(model_path))
    if dtype != "stored":
        model.set_dtype(getattr(mx, dtype))
    arrays: dict[str, np.ndarray] = {}
    for index, tokens in enumerate(json.load(sys.stdin)):
        cache = make_prompt_cache(model)
        logits = model(mx.array([tokens]), cache=cache)
        for _ in range(int(count)):
            tokens.append(int(logits[0, -1].argmax()))
            logits = model(mx.array([tokens[-1:]]), cache=cache)
        dense = model(mx.array([tokens]))[0].astype(mx.float32)
        arrays |= {f"tokens_{index}": np.array(tokens), f"logits_{index}": np.array(dense)}
    np.savez(out, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
