"""The registry: a family runs only if it is listed here, and is listed only if it passes the
comparison with mlx-lm in tests/models/test_families.py.

Each entry says where its layers have windows and what of a config mlx-lm drops although its module
knows the field; what the module does not know is found by `semantics`.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.families import Family
from mlxrt.models.windows import (
    by_layer_types,
    by_letters,
    by_period,
    every_fourth_full,
    every_second_full,
)

_FULL_AND_WINDOW = "full and sliding window"
_GELU = ("gelu", None)
_BIASED = {"attention_bias": (True, None)}
_TIED = {"tie_word_embeddings": (True, None)}


def _llama_dropped(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config
    found = []
    if config.get("sliding_window") and not config.get("layer_types"):
        found.append(f"sliding_window: {config['sliding_window']} without layer_types")
    return found + _tied_by_default(checkpoint)


def _tied_by_default(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm ties where the field is absent, and drops the head's own weights."""
    if "tie_word_embeddings" not in checkpoint.config and "lm_head.weight" in checkpoint.tensors:
        return ["tie_word_embeddings: absent, so that mlx-lm ties them and drops lm_head.weight"]
    return []


def _phi3_dropped(checkpoint: Checkpoint) -> list[str]:
    """mlx-lm turns any scaling but three off."""
    kind = (checkpoint.config.get("rope_scaling") or {}).get("type", "linear")
    return [] if kind in ("longrope", "su", "linear") else [f"rope_scaling.type: {kind}"]


def _sliding_smollm3(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config
    if config.get("sliding_window") and config.get("use_sliding_window"):
        return [f"sliding_window: {config['sliding_window']}"]
    return _tied_by_default(checkpoint)


_LISTED = (
    Family(
        model_type="apertus",
        activations=("xielu", None),
        dropped={"post_norm": (False, None), "qk_norm": (True, None)},
    ),
    Family(
        model_type="cohere",
        dropped=_TIED,
        required=("logit_scale", "layer_norm_eps", "rope_theta"),
    ),
    Family(
        model_type="cohere2",
        attention=_FULL_AND_WINDOW,
        windows=by_period,
        dropped={**_TIED, "position_embedding_type": ("rope_gptj", None)},
        required=("logit_scale", "sliding_window", "head_dim", "layer_norm_eps", "rope_theta"),
    ),
    Family(
        model_type="dots1",
        dropped={"topk_method": ("noaux_tc", None), "scoring_func": ("noaux_tc", "sigmoid", None)},
    ),
    Family(model_type="ernie4_5"),
    Family(model_type="exaone", inner="transformer"),
    Family(model_type="exaone4", attention=_FULL_AND_WINDOW, windows=by_letters),
    Family(model_type="gemma", activations=_GELU, dropped=_TIED, required=("rope_theta",)),
    Family(
        model_type="gemma3_text",
        attention=_FULL_AND_WINDOW,
        windows=by_period,
        activations=("gelu_pytorch_tanh", None),
        dropped=_TIED,
        required=(
            "head_dim",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
            "rope_theta",
            "sliding_window",
        ),
    ),
    Family(model_type="glm", dropped={"partial_rotary_factor": (0.5, None)}),
    Family(model_type="glm4"),
    Family(
        model_type="gpt_neox",
        activations=("gelu_new", "gelu_fast", "gelu_pytorch_tanh", None),
        dropped=_BIASED,
    ),
    Family(
        model_type="gpt_oss",
        attention=_FULL_AND_WINDOW + ", sinks",
        windows=every_second_full,
        dropped={"attention_bias": (True, None), "swiglu_limit": (7.0, None)},
        required=("sliding_window", "rope_theta", "head_dim", "num_local_experts"),
    ),
    Family(model_type="granite"),
    Family(model_type="granitemoe"),
    Family(model_type="helium"),
    Family(model_type="hunyuan_v1_dense"),
    Family(model_type="internlm2"),
    Family(
        model_type="llama",
        attention="full, or as layer_types says",
        windows=by_layer_types,
        dropped_by_rule=_llama_dropped,
    ),
    Family(model_type="mimo", dropped=_BIASED),
    Family(
        model_type="mistral",
        module="llama",
        attention="full, or as layer_types says",
        windows=by_layer_types,
        dropped_by_rule=_llama_dropped,
    ),
    Family(model_type="mixtral", required=("rope_theta", "num_local_experts")),
    Family(model_type="nemotron", activations=("relu2", None), dropped={"hidden_act": ("relu2",)}),
    Family(model_type="olmo2", dropped_by_rule=_tied_by_default),
    Family(model_type="olmo3", attention=_FULL_AND_WINDOW, windows=every_fourth_full),
    Family(model_type="olmoe", dropped_by_rule=_tied_by_default),
    Family(
        model_type="phi",
        activations=("gelu_new", "gelu_pytorch_tanh", None),
        required=("partial_rotary_factor",),
    ),
    Family(model_type="phi3", dropped_by_rule=_phi3_dropped),
    Family(model_type="qwen2", dropped=_BIASED, dropped_by_rule=_tied_by_default),
    Family(model_type="qwen2_moe", dropped=_BIASED),
    Family(model_type="qwen3"),
    Family(model_type="qwen3_moe"),
    Family(model_type="seed_oss", dropped_by_rule=_tied_by_default),
    Family(model_type="smollm3", dropped_by_rule=_sliding_smollm3),
    Family(model_type="stablelm"),
    Family(
        model_type="starcoder2",
        activations=_GELU,
        dropped={"use_bias": (True, None)},
        dropped_by_rule=_tied_by_default,
    ),
)

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _LISTED}
"""By model_type."""
