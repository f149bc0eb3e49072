"""Makes a Qwen3 checkpoint of random weights: the right shape and cost, no meaning."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3 model, by the names of its config.json; embeddings are tied."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = True
    model_type: str = "qwen3"


QWEN3_30M = Shape(512, 8, 1536, 8, 4, 64, 8192)
"""About 30 million parameters."""
QWEN3_600M = Shape(1024, 28, 3072, 16, 8, 128, 151936, max_position_embeddings=40960)
"""The shape of Qwen3-0.6B."""


def write_random_model(folder: Path, shape: Shape = QWEN3_30M, seed: int = 0) -> int:
    """Writes config.json and model.safetensors (float32) into `folder`; returns the number of
    parameters."""
    rng = np.random.default_rng(seed)

    def dense(rows: int, columns: int) -> np.ndarray:
        scale = np.float32(columns**-0.5)
        return rng.standard_normal((rows, columns), dtype=np.float32) * scale

    def ones(size: int) -> np.ndarray:
        return np.ones(size, dtype=np.float32)

    s = shape
    query, key = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
    weights = {
        "model.embed_tokens.weight": dense(s.vocab_size, s.hidden_size),
        "model.norm.weight": ones(s.hidden_size),
    }
    for layer in range(s.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "self_attn.q_proj.weight": dense(query, s.hidden_size),
            prefix + "self_attn.k_proj.weight": dense(key, s.hidden_size),
            prefix + "self_attn.v_proj.weight": dense(key, s.hidden_size),
            prefix + "self_attn.o_proj.weight": dense(s.hidden_size, query),
            prefix + "self_attn.q_norm.weight": ones(s.head_dim),
            prefix + "self_attn.k_norm.weight": ones(s.head_dim),
            prefix + "mlp.gate_proj.weight": dense(s.intermediate_size, s.hidden_size),
            prefix + "mlp.up_proj.weight": dense(s.intermediate_size, s.hidden_size),
            prefix + "mlp.down_proj.weight": dense(s.hidden_size, s.intermediate_size),
            prefix + "input_layernorm.weight": ones(s.hidden_size),
            prefix + "post_attention_layernorm.weight": ones(s.hidden_size),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(asdict(shape), indent=1))
    return sum(w.size for w in weights.values())
