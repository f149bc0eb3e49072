"""mlx-lm alone, as a process of its own: `BatchGenerator` with its batch set to the number of
sequences.

`python -m mlxrt.bench.mlx_lm_arm MODEL SEQUENCES CONTEXT BLAS DTYPE [prefill]` fills the context,
prints "ready", then answers every line `STEPS` on its input with the seconds that this many decode
steps took; or, with `prefill`, that this many prefills of all sequences took, their first tokens
included. DTYPE "auto" is the one that mlxrt takes: float32 on a CPU, else the checkpoint's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from mlxrt.bench.population import prompts_for


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
    if sys.argv[6:] == ["prefill"]:
        print("ready", flush=True)
        for line in sys.stdin:
            print(sum(_prefill(model, prompts) for _ in range(int(line))), flush=True)
        return
    generator = _filled(model, prompts)
    for _ in range(4):
        generator.next_generated()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            assert len(generator.next_generated()) == count
        print(time.perf_counter() - start, flush=True)


def _filled(model: Any, prompts: list[list[int]]) -> Any:
    """A generator whose sequences all have their first tokens."""
    from mlx_lm.generate import BatchGenerator

    count = len(prompts)
    generator = BatchGenerator(
        model, max_tokens=1 << 20, completion_batch_size=count, prefill_batch_size=count
    )
    generator.insert(prompts)
    while len(generator.next_generated()) < count:
        pass
    return generator


def _prefill(model: Any, prompts: list[list[int]]) -> float:
    start = time.perf_counter()
    _filled(model, prompts)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
