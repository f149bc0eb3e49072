"""The bundled model's shape and the files that declare it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRAINED_CONTEXT = 1024
"""Tokens in a training window; the positions beyond it, up to the maximum, are untrained."""


def config(end_of_text_id: int, vocab_size: int) -> dict[str, Any]:
    """Returns the content of config.json: Qwen3 with tied embeddings, about 3.75M parameters."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "num_hidden_layers": 5,
        "intermediate_size": 448,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "initializer_range": 0.0625,
        "bos_token_id": None,
        "eos_token_id": end_of_text_id,
        "pad_token_id": end_of_text_id,
        "torch_dtype": "bfloat16",
    }


def save_config(content: dict[str, Any], folder: Path) -> None:
    """Writes config.json and generation_config.json (greedy, stop at end of text)."""
    end = content["eos_token_id"]
    generation = {"do_sample": False, "eos_token_id": end, "pad_token_id": end}
    for name, value in (("config.json", content), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
