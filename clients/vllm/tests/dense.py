"""mlx-lm alone, in the server's environment: is each of these tokens the greedy one?

`PYTHON dense.py MODEL` reads a JSON list of [prompt length, tokens] from its input and writes one
list of token ids for each: the largest logit's after each token from the prompt's last on, of one
dense float32 run over them all. Tokens that equal this are those of greedy decoding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlxrt.launch import choose_blas


def main() -> None:
    """See the module."""
    choose_blas("auto")
    import mlx.core as mx
    from mlxrt.models.loading import import_mlx_lm_loader

    model, _ = import_mlx_lm_loader().load_model(Path(sys.argv[1]))
    model.set_dtype(mx.float32)
    chosen = []
    for prompt_length, tokens in json.load(sys.stdin):
        logits = model(mx.array([tokens]))[0]
        chosen.append(logits[prompt_length - 1 : -1].argmax(axis=1).tolist())
    json.dump(chosen, sys.stdout)


if __name__ == "__main__":
    main()
