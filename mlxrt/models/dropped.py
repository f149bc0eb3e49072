"""What mlx-lm ignores of a family's config, where it takes several fields to tell."""

from __future__ import annotations

from typing import Any

from mlxrt.models.checkpoint import Checkpoint


def llama(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm applies a window only where layer_types names it."""
    config = checkpoint.config
    found = []
    if config.get("sliding_window") and not config.get("layer_types"):
        found.append(f"sliding_window: {config['sliding_window']} without layer_types")
    return found + tied_by_default(checkpoint)


def tied_by_default(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm ties where the field is absent, and drops the head's own weights."""
    if "tie_word_embeddings" not in checkpoint.config and "lm_head.weight" in checkpoint.tensors:
        return ["tie_word_embeddings: absent, so that mlx-lm ties them and drops lm_head.weight"]
    return []


def phi3(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm turns any scaling but three off."""
    kind = (checkpoint.config.get("rope_scaling") or {}).get("type", "linear")
    return [] if kind in ("longrope", "su", "linear") else [f"rope_scaling.type: {kind}"]


def smollm3(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm applies no window."""
    config = checkpoint.config
    if config.get("sliding_window") and config.get("use_sliding_window"):
        return [f"sliding_window: {config['sliding_window']}"]
    return tied_by_default(checkpoint)


def deepseek(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm turns any scaling but linear off."""
    kind = (checkpoint.config.get("rope_scaling") or {}).get("type", "linear")
    return [] if kind == "linear" else [f"rope_scaling.type: {kind}"]


def mellum(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm takes linear scaling for none."""
    layers = (checkpoint.config.get("rope_parameters") or {}).items()
    return [f"rope_parameters.{name}: linear" for name, rope in layers if _is_linear(rope)]


def _is_linear(rope: Any) -> bool:
    return isinstance(rope, dict) and rope.get("rope_type") == "linear"


def minimax(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm has no linear attention, which attn_type_list says by a 0."""
    kinds = checkpoint.config.get("attn_type_list") or []
    return [] if all(kind == 1 for kind in kinds) else [f"attn_type_list: {kinds}"]
