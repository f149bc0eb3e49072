"""mlx-lm alone, as a process of its own: `BatchGenerator` with its batch set to the number of
sequences.

`python -m mlxrt.bench.mlx_lm_arm MODEL SEQUENCES CONTEXT BLAS DTYPE` fills the context, prints
"ready", then answers every line `STEPS` on its input with the seconds that this many decode steps
took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mlxrt.bench.population import prompts_for


def main() -> None:
    """See the module."""
    model_path, sequences, context, blas_choice, dtype = sys.argv[1:6]
    from mlxrt.launch import choose_blas

    choose_blas(blas_choice)
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load_model

    model, config = load_model(Path(model_path))
    if dtype != "stored":
        model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    count = int(sequences)
    generator = BatchGenerator(
        model, max_tokens=1 << 20, completion_batch_size=count, prefill_batch_size=count
    )
    generator.insert(prompts_for(count, int(context), config["vocab_size"]))
    while len(generator.next_generated()) < count:
        pass
    for _ in range(4):
        generator.next_generated()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            assert len(generator.next_generated()) == count
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
