"""Measures the bundled model: its loss on held-out text, the margins of its greedy choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.losses import cross_entropy as token_losses

from mlxrt.bundled.tokens import Tokens, consecutive

PROMPTS = (
    "def read_config(path):\n",
    "class Stack:\n    def __init__(self",
    "import os\nimport sys\n\ndef main(argv=None):\n",
    "    def __repr__(self):\n",
    "class Error(Exception):\n",
    'if __name__ == "__main__":\n',
    "def test_",
    "from collections import",
    "    try:\n        import",
    "for name in sorted",
    "    def close(self):\n",
    "with open(filename, 'rb') as",
    "def parse_args(",
    '"""This module provides',
    "    if not isinstance(",
    "async def",
)
"""Prompts whose greedy completions the card holds and takes its margins from.

None ends with a space: a space belongs to the word after it (see `tokenizer_training.SPLIT`).
"""


@dataclass(frozen=True)
class Greedy:
    """A greedy completion.

    Attributes:
        token_ids: the tokens chosen, without the prompt; ends before end of text.
        margins: for each of them, the best logit less the second best, float32.
    """

    token_ids: list[int]
    margins: list[float]


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Returns the mean loss in nats a token; logits `[B, L, vocab]`, targets `[B, L]`."""
    return mx.mean(token_losses(logits.astype(mx.float32), targets))


def stream_loss(
    model: Callable[[mx.array], mx.array], stream: Tokens, length: int, batch: int = 8
) -> float:
    """Returns the mean loss in nats a token over a stream cut into windows of `length` tokens.

    Raises:
        ValueError: the stream is shorter than one window.
    """
    total, count = 0.0, 0
    for windows in consecutive(stream, length, batch):
        tokens = mx.array(windows)
        loss = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        total += float(np.asarray(loss)) * len(windows)
        count += len(windows)
    if not count:
        raise ValueError(f"{len(stream)} tokens fill no window of {length}")
    return total / count


def bits_per_byte(nats_per_token: float, stream: Tokens, byte_count: int) -> float:
    """Converts a loss per token to bits per byte of the text that the stream encodes."""
    return nats_per_token * len(stream) / byte_count / math.log(2)


def held_out_losses(
    model: Module, streams: dict[str, Tokens], byte_counts: dict[str, int], length: int
) -> dict[str, dict[str, float] | str]:
    """Returns the loss on both held-out streams, per token and per byte.

    Converts the model to float32, so that the stored weights are measured without bfloat16 sums.
    """
    model.set_dtype(mx.float32)
    losses: dict[str, dict[str, float] | str] = {
        "arithmetic": f"float32 on the stored bfloat16 weights, windows of {length} tokens"
    }
    for name in ("held_out_library", "held_out_tests"):
        loss = stream_loss(model, streams[name], length)
        bits = bits_per_byte(loss, streams[name], byte_counts[name])
        losses[name] = {"nats_per_token": round(loss, 4), "bits_per_byte": round(bits, 4)}
    return losses


def greedy(
    model: Module, prompt_ids: list[int], limit: int, end_of_text_id: int | None = None
) -> Greedy:
    """Completes a prompt greedily with mlx-lm's own cache, at most `limit` tokens."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    feed = prompt_ids
    token_ids: list[int] = []
    margins: list[float] = []
    while len(token_ids) < limit:
        logits = model(mx.array([feed]), cache=cache)[0, -1].astype(mx.float32)
        second, first = np.sort(np.asarray(logits))[-2:]
        feed = [int(np.argmax(np.asarray(logits)))]
        if feed[0] == end_of_text_id:
            break
        token_ids += feed
        margins.append(float(first - second))
    return Greedy(token_ids, margins)


def margin_statistics(completions: list[Greedy]) -> dict[str, float | int]:
    """Returns count, minimum, percentiles and near-tie shares of the greedy choices' margins."""
    margins = np.concatenate([completion.margins for completion in completions])
    return {
        "choices": int(margins.size),
        "minimum": round(float(margins.min()), 5),
        "percentile_1": round(float(np.percentile(margins, 1)), 4),
        "percentile_10": round(float(np.percentile(margins, 10)), 4),
        "median": round(float(np.median(margins)), 4),
        "share_below_0.001": round(float((margins < 1e-3).mean()), 5),
        "share_below_0.01": round(float((margins < 1e-2).mean()), 5),
        "share_below_0.1": round(float((margins < 1e-1).mean()), 5),
    }
