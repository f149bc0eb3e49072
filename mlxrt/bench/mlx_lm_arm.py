"""mlx-lm alone, as a process of its own.

`python -m mlxrt.bench.mlx_lm_arm MODEL SEQUENCES CONTEXT BLAS DTYPE [WAY]` fills the context,
prints "ready", then answers every line `STEPS` on its input with the seconds that this many decode
steps took. DTYPE "auto" is the one that mlxrt takes: float32 on a CPU, else the checkpoint's. WAY:

- "generator": `BatchGenerator`, its batch set to the number of sequences;
- "dense": the model in a bare loop over its own caches, sequences of one length, each step launched
  before the one before is read;
- "prefill": not decode steps but prefills of all sequences, first tokens included, as in the bare
  loop: 2048 positions at a time and the last one alone, as mlx-lm's own generators do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxrt.bench.population import prompts_for

_CHUNK = 2048


def main() -> None:
    """See the module."""
    model_path, sequences, context, blas_choice, dtype = sys.argv[1:6]
    from mlxrt.launch import choose_blas

    choose_blas(blas_choice)
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, config = load_model(Path(model_path))
    if dtype == "auto" and mx.default_device() == mx.Device(mx.cpu):
        dtype = "float32"
    if dtype != "auto":
        model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    count = int(sequences)
    prompts = prompts_for(count, int(context), config["vocab_size"])
    ways = {"generator": _generator, "dense": _dense, "prefill": _prefills}
    run = ways[sys.argv[6] if sys.argv[6:] else "generator"](model, prompts)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - start, flush=True)


def _generator(model: Any, prompts: list[list[int]]) -> Callable[[int], None]:
    from mlx_lm.generate import BatchGenerator

    count = len(prompts)
    generator = BatchGenerator(
        model, max_tokens=1 << 20, completion_batch_size=count, prefill_batch_size=count
    )
    generator.insert(prompts)
    while len(generator.next_generated()) < count:
        pass

    def run(steps: int) -> None:
        for _ in range(steps):
            assert len(generator.next_generated()) == count

    run(4)
    return run


def _dense(model: Any, prompts: list[list[int]]) -> Callable[[int], None]:
    import mlx.core as mx

    tokens, caches = _filled(model, prompts)

    def run(steps: int) -> None:
        nonlocal tokens
        for _ in range(steps):
            following = mx.argmax(model(tokens[:, None], cache=caches)[:, -1], axis=-1)
            mx.async_eval(following)  # type: ignore[no-untyped-call]
            tokens.tolist()
            tokens = following
        tokens.tolist()

    return run


def _prefills(model: Any, prompts: list[list[int]]) -> Callable[[int], None]:
    import mlx.core as mx

    def run(steps: int) -> None:
        for _ in range(steps):
            mx.eval(_filled(model, prompts)[0])

    return run


def _filled(model: Any, prompts: list[list[int]]) -> tuple[Any, list[Any]]:
    """First tokens [S], lazy, and the caches behind them."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    rows = mx.array(prompts)
    last = rows.shape[1] - 1
    for start in range(0, last, _CHUNK):
        # Nobody takes the logits, so that they are not computed.
        model(rows[:, start : min(start + _CHUNK, last)], cache=caches)
        mx.eval([cache.state for cache in caches])
        mx.clear_cache()
    return mx.argmax(model(rows[:, last:], cache=caches)[:, -1], axis=-1), caches


if __name__ == "__main__":
    main()
