"""Refuses a checkpoint whose config asks for numbers that mlx-lm would not compute.

mlx-lm takes from a config the fields that its module's `ModelArgs` has and drops all others in
silence. So a field that can change numbers, and that the module does not have, must be at a value
at which it changes none.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError
from mlxrt.models.family import Config, Family
from mlxrt.models.rope import rope_findings

ACCEPT_FLAG = "--accept-mlx-lm-semantics"
"""The command line's name for `accept_dropped`."""

_OFF = (None, False)
_ONE = (None, 1.0)
_NONE = (None,)

NUMERIC_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "alibi": _OFF,
    "attention_bias": _OFF,
    "attention_multiplier": _NONE,
    "attention_out_bias": _OFF,
    "attn_logit_softcapping": _NONE,
    "clip_qkv": _NONE,
    "embedding_multiplier": _ONE,
    "final_logit_softcapping": _NONE,
    "layer_norm_bias": _OFF,
    "logit_scale": _ONE,
    "logits_scaling": _ONE,
    "mlp_bias": _OFF,
    "moe_num_experts": (None, 0, 1),
    "n_routed_experts": (None, 0, 1),
    "decoder_sparse_step": (None, 1),
    "mlp_only_layers": (None, []),
    "no_rope_layers": _NONE,
    "norm_topk_prob": _OFF,
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "num_shared_experts": (None, 0),
    "parallel_attn": _OFF,
    "partial_rotary_factor": _ONE,
    "qk_layernorm": _OFF,
    "query_pre_attn_scalar": _NONE,
    "residual_multiplier": _ONE,
    "rope_local_base_freq": _NONE,
    "rope_scaling": _NONE,
    "rotary_dim": _NONE,
    "rotary_pct": _ONE,
    "routed_scaling_factor": _ONE,
    "scale_depth": _NONE,
    "scale_emb": _ONE,
    "sliding_window": _NONE,
    "sliding_window_pattern": _NONE,
    "tie_word_embeddings": _OFF,
    "use_bidirectional_attention": _OFF,
    "use_parallel_residual": _OFF,
    "use_qk_norm": _OFF,
    "use_qkv_bias": _OFF,
    "use_sliding_window": _OFF,
}
"""Fields that change numbers, each with the values at which it changes none."""

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


def check_semantics(checkpoint: Checkpoint, family: Family, *, accept_dropped: bool) -> list[str]:
    """Compares the config with what mlx-lm computes of it. Imports mlx-lm's module.

    Args:
        accept_dropped: compute as mlx-lm does even where it ignores a field.

    Returns:
        The fields that mlx-lm ignores and the user accepted.

    Raises:
        ModelError: a field is missing, or ignored and that was not accepted, or can't be served at
            all.
    """
    config = checkpoint.config
    missing = [name for name in family.required if config.get(name) is None]
    if missing:
        raise ModelError(f"config.json of a {family.model_type} checkpoint lacks {missing}")
    known = fields_of(family)
    rope = rope_findings(config, family.rope_types)
    reads_rope = "rope_scaling" in known or "rope_parameters" in known
    if rope.unservable and reads_rope:
        raise ModelError(f"{family.model_type} with {'; '.join(rope.unservable)} is not served")
    if "head_dim" not in family.known_otherwise:
        _check_head_width(config, known)
    dropped = _dropped_fields(config, family, known) + _dropped_rope(config, known)
    if reads_rope:
        dropped += rope.dropped
    dropped += family.dropped_by_rule(checkpoint)
    if dropped and not accept_dropped:
        raise ModelError(
            f"mlx-lm ignores what this {family.model_type} checkpoint's config says: "
            f"{'; '.join(dropped)}. {ACCEPT_FLAG} computes as mlx-lm does"
        )
    return dropped


def fields_of(family: Family) -> frozenset[str]:
    """The fields of config.json that mlx-lm's module takes."""
    from mlxrt.models.loading import import_mlx_lm_loader

    import_mlx_lm_loader()
    name = family.text_module or family.module_name
    module = importlib.import_module(f"mlx_lm.models.{name}")
    return frozenset(inspect.signature(module.ModelArgs).parameters)


def _dropped_fields(config: Config, family: Family, known: frozenset[str]) -> list[str]:
    neutral: dict[str, tuple[Any, ...]] = {
        name: values for name, values in NUMERIC_FIELDS.items() if name not in known
    }
    if not config.get("use_sliding_window", True):
        neutral.pop("sliding_window", None)
    neutral |= {name: family.activations for name in _ACTIVATIONS if name not in known}
    neutral |= family.dropped
    for name in family.known_otherwise:
        neutral.pop(name, None)
    found = [
        f"{name}: {config[name]}"
        for name, values in neutral.items()
        if name in config and config[name] not in values
    ]
    return found + _sliding_types(config, family)


def _sliding_types(config: Config, family: Family) -> list[str]:
    """Layer types that no window serves; a family with windows compares them at load."""
    if family.attention != "full":
        return []
    others = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    return [f"layer_types: {name}" for name in others]


def _dropped_rope(config: Config, known: frozenset[str]) -> list[str]:
    """What rope_parameters, as newer checkpoints have it, says beyond the fields mlx-lm reads."""
    nested = config.get("rope_parameters") or {}
    base = config.get("rope_theta")
    if "rope_parameters" in known and base is None:
        return []
    found = []
    if "rope_theta" in nested and nested["rope_theta"] != base:
        found.append(f"rope_parameters.rope_theta: {nested['rope_theta']} (rope_theta: {base})")
    unread = "rope_parameters" not in known and not config.get("rope_scaling")
    if nested.get("rope_type", "default") != "default" and unread:
        found.append(f"rope_parameters.rope_type: {nested['rope_type']}")
    layered = sorted(name for name, value in nested.items() if isinstance(value, dict))
    return found + [f"rope_parameters.{name}" for name in layered]


def _check_head_width(config: Config, known: frozenset[str]) -> None:
    """A module without `head_dim` divides the hidden size among the heads."""
    width, hidden = config.get("head_dim"), config.get("hidden_size")
    heads = config.get("num_attention_heads")
    if "head_dim" not in known and width and hidden and heads and width * heads != hidden:
        raise ModelError(f"head_dim: {width} is not hidden_size / num_attention_heads")
