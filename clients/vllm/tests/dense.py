"""mlx-lm alone, in the server's environment: is each of these tokens the greedy one?

`PYTHON dense.py MODEL` reads a JSON list of [prompt length, tokens] from its input. For each it
makes one dense float32 run over all tokens and writes `chosen`, the largest logit's token after
each from the prompt's last on, and `logprobs`, of each token but the first. Tokens that equal
`chosen` are those of greedy decoding.
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
    runs = []
    for prompt_length, tokens in json.load(sys.stdin):
        logits = model(mx.array([tokens]))[0, :-1]
        chosen = logits[prompt_length - 1 :].argmax(axis=1)
        given = mx.array(tokens[1:])[:, None]
        logprobs = mx.take_along_axis(logits, given, axis=1)[:, 0] - mx.logsumexp(logits, axis=1)
        runs.append({"chosen": chosen.tolist(), "logprobs": logprobs.tolist()})
    json.dump(runs, sys.stdout)


if __name__ == "__main__":
    main()
