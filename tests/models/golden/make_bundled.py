"""Writes bundled.json beside itself: greedy tokens of the bundled model, computed by mlx-lm alone
in float32.

Run it only when the bundled model itself has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from mlxrt.models import read_checkpoint, resolve_folder
from mlxrt.models.loading import import_mlx_lm_loader

TOKENS = 48
PROMPTS = (
    "import",
    "def __init__(self, ",
    'class Queue:\n    """A queue',
    "    for key, value in sorted(self._items.items()):\n        ",
    "try:\n    import json\nexcept ImportError:\n",
    "# This function returns the number of",
    "    def test_empty(self):\n        with self.assertRaises(ValueError):\n"
    "            parse('')\n\n" * 3,
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n\n\n" * 4,
)


def main() -> None:
    """Computes and writes."""
    loader = import_mlx_lm_loader()
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    checkpoint = read_checkpoint(resolve_folder("bundled"))
    model, _ = loader.load_model(checkpoint.folder)
    model.set_dtype(mx.float32)
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    cases = []
    for text in PROMPTS:
        prompt = tokenizer.encode(text).ids
        cache = make_prompt_cache(model)
        logits = model(mx.array([prompt]), cache=cache)[0, -1]
        tokens, margin = [], float("inf")
        for _ in range(TOKENS):
            best = mx.sort(logits)[-2:].tolist()
            margin = min(margin, best[1] - best[0])
            tokens.append(int(logits.argmax()))
            logits = model(mx.array([tokens[-1:]]), cache=cache)[0, -1]
        cases.append({"prompt": prompt, "tokens": tokens, "least_margin": round(margin, 5)})
    golden = {"fingerprint": checkpoint.fingerprint, "cases": cases}
    path = Path(__file__).with_name("bundled.json")
    path.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
