"""The registry: a family runs only if it is listed here, and is listed only if it passes the
comparison with mlx-lm in tests/models/test_families.py.

Each entry says where its layers have windows and what of a config mlx-lm drops although its module
knows the field; what the module does not know is found by `semantics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlxrt.models import dropped
from mlxrt.models.family import Family
from mlxrt.models.windows import (
    by_hybrid_pattern,
    by_layer_types,
    by_letters,
    by_period,
    by_sixes,
    every_fourth_full,
    every_second_full,
)

_FULL_AND_WINDOW = "full and sliding window"
_GELU = ("gelu", None)
_BIASED = {"attention_bias": (True, None)}
_TIED = {"tie_word_embeddings": (True, None)}
_OFF = (False, None)
_ROUTED_BY_SIGMOID = {"scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)}
_MINIMAX = {
    "scoring_func": ("sigmoid", None),
    "shared_intermediate_size": (0, None),
    "use_routing_bias": (True, None),
}


def _wrapped(model_type: str, text: Family, *text_types: str, **changes: Any) -> Family:
    """A family whose model holds the text model of another, with a config of its own in
    text_config.
    """
    return replace(
        text,
        model_type=model_type,
        module=changes.pop("module", model_type),
        text_module=text.module_name,
        text_types=text_types,
        inner=f"language_model.{text.inner}",
        **changes,
    )


_PLAIN = (
    Family(model_type="Klear"),
    Family(
        model_type="afmoe",
        attention=_FULL_AND_WINDOW,
        windows=by_layer_types,
        dropped={"score_func": ("sigmoid", "softmax", None)},
        required=(
            "head_dim",
            "mup_enabled",
            "num_dense_layers",
            "num_experts",
            "num_experts_per_tok",
            "rope_theta",
            "route_scale",
            "sliding_window",
        ),
    ),
    Family(
        model_type="apertus",
        activations=("xielu", None),
        dropped={"post_norm": (False, None), "qk_norm": (True, None)},
    ),
    Family(
        model_type="bailing_moe",
        dropped={
            "norm_softmax": _OFF,
            "moe_router_enable_routed_scaling": (True, None),
            "score_function": ("softmax", "sigmoid", None),
            "multi_gate": _OFF,
        },
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
        model_type="deepseek",
        dropped={"scoring_func": ("softmax", None), "topk_method": ("greedy", None)},
        dropped_by_rule=dropped.deepseek,
        required=(
            "first_k_dense_replace",
            "moe_intermediate_size",
            "num_key_value_heads",
            "rope_theta",
        ),
    ),
    Family(
        model_type="dots1",
        dropped={"topk_method": ("noaux_tc", None), "scoring_func": ("noaux_tc", "sigmoid", None)},
    ),
    Family(model_type="ernie4_5"),
    Family(
        model_type="ernie4_5_moe",
        dropped={"moe_use_aux_free": _OFF, "compression_ratio": (1.0, None)},
    ),
    Family(model_type="exaone", inner="transformer"),
    Family(model_type="exaone4", attention=_FULL_AND_WINDOW, windows=by_letters),
    Family(
        model_type="exaone_moe",
        attention=_FULL_AND_WINDOW,
        windows=by_letters,
        known_otherwise=("sliding_window_pattern",),
        dropped=_ROUTED_BY_SIGMOID,
    ),
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
    Family(
        model_type="gemma4_text",
        attention=_FULL_AND_WINDOW,
        windows=by_layer_types,
        activations=("gelu_pytorch_tanh", None),
        rope_types=("proportional",),
        dropped={"use_bidirectional_attention": (False, "vision", None)},
        required=(
            "final_logit_softcapping",
            "global_head_dim",
            "head_dim",
            "hidden_size_per_layer_input",
            "layer_types",
            "num_kv_shared_layers",
            "rope_parameters",
            "sliding_window",
        ),
    ),
    Family(model_type="glm", dropped={"partial_rotary_factor": (0.5, None)}),
    Family(model_type="glm4"),
    Family(
        model_type="glm4_moe",
        dropped={**_ROUTED_BY_SIGMOID, "rope_scaling": (None,), "tie_word_embeddings": _OFF},
    ),
    Family(
        model_type="gpt2",
        activations=("gelu_new", "gelu_pytorch_tanh", None),
        dropped={
            **_TIED,
            "n_inner": (None,),
            "scale_attn_by_inverse_layer_idx": _OFF,
            "scale_attn_weights": (True, None),
        },
    ),
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
    Family(
        model_type="gptj",
        activations=("gelu_new", "gelu_pytorch_tanh", None),
        dropped={"n_inner": (None,), "scale_attn_weights": (True, None)},
        required=("rotary_dim",),
    ),
    Family(model_type="granite"),
    Family(model_type="granitemoe"),
    Family(model_type="helium"),
    Family(model_type="hunyuan_v1_dense", rope_types=("dynamic",)),
    Family(model_type="internlm2"),
    Family(
        model_type="llama",
        attention="full, or as layer_types says",
        windows=by_layer_types,
        dropped_by_rule=dropped.llama,
    ),
    Family(
        model_type="iquestcoder",
        module="llama",
        attention="full, or as layer_types says",
        windows=by_layer_types,
        dropped_by_rule=dropped.llama,
    ),
    Family(
        model_type="mellum",
        attention=_FULL_AND_WINDOW,
        windows=by_layer_types,
        dropped_by_rule=dropped.mellum,
    ),
    Family(model_type="mimo", dropped=_BIASED),
    Family(
        model_type="mimo_v2_flash",
        attention=_FULL_AND_WINDOW + ", sinks",
        windows=by_hybrid_pattern,
        known_otherwise=("sliding_window",),
        dropped=_ROUTED_BY_SIGMOID,
    ),
    Family(model_type="minicpm", dropped={"sparse_config": (None,)}),
    Family(
        model_type="minimax",
        dropped=_MINIMAX,
        dropped_by_rule=dropped.minimax,
    ),
    Family(
        model_type="minimax_m2",
        module="minimax",
        dropped=_MINIMAX,
        dropped_by_rule=dropped.minimax,
    ),
    Family(
        model_type="ministral3",
        attention="full, or as layer_types says",
        windows=by_layer_types,
        required=("rope_parameters",),
    ),
    Family(
        model_type="mistral",
        module="llama",
        attention="full, or as layer_types says",
        windows=by_layer_types,
        dropped_by_rule=dropped.llama,
    ),
    Family(model_type="mixtral", required=("rope_theta", "num_local_experts")),
    Family(
        model_type="nanochat",
        inner="transformer",
        activations=("relu2", None),
        dropped={"final_logit_softcapping": (15.0, None), "rms_norm_eps": (1e-5, None)},
        required=("intermediate_size", "num_key_value_heads", "rope_theta"),
    ),
    Family(model_type="nemotron", activations=("relu2", None), dropped={"hidden_act": ("relu2",)}),
    Family(model_type="olmo2", dropped_by_rule=dropped.tied_by_default),
    Family(model_type="olmo3", attention=_FULL_AND_WINDOW, windows=every_fourth_full),
    Family(model_type="olmoe", dropped_by_rule=dropped.tied_by_default),
    Family(
        model_type="openelm",
        inner="transformer",
        dropped={
            "activation_fn_name": ("swish", "silu", None),
            "ffn_with_glu": (True, None),
            "normalization_layer_name": ("rms_norm", None),
        },
        required=("normalize_qk_projections", "rope_freq_constant", "share_input_output_layers"),
    ),
    Family(
        model_type="phi",
        activations=("gelu_new", "gelu_pytorch_tanh", None),
        required=("partial_rotary_factor",),
    ),
    Family(model_type="phi3", dropped_by_rule=dropped.phi3),
    Family(
        model_type="qwen",
        inner="transformer",
        dropped={
            "rotary_emb_base": (10000, None),
            "use_dynamic_ntk": _OFF,
            "use_logn_attn": _OFF,
        },
        required=("kv_channels",),
    ),
    Family(model_type="qwen2", dropped=_BIASED, dropped_by_rule=dropped.tied_by_default),
    Family(model_type="qwen2_moe", dropped=_BIASED),
    Family(model_type="qwen3"),
    Family(model_type="qwen3_moe"),
    Family(model_type="seed_oss", dropped_by_rule=dropped.tied_by_default),
    Family(model_type="smollm3", dropped_by_rule=dropped.smollm3),
    Family(
        model_type="solar_open",
        dropped={**_ROUTED_BY_SIGMOID, "rope_scaling": (None,), "tie_word_embeddings": _OFF},
    ),
    Family(model_type="stablelm"),
    Family(
        model_type="starcoder2",
        activations=_GELU,
        dropped={"use_bias": (True, None)},
        dropped_by_rule=dropped.tied_by_default,
    ),
    Family(model_type="telechat3"),
    Family(
        model_type="youtu_llm",
        known_otherwise=("head_dim",),
        required=(
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "rope_theta",
            "v_head_dim",
        ),
    ),
)

_TEXT = {family.model_type: family for family in _PLAIN}
_LISTED = (
    *_PLAIN,
    _wrapped(
        "gemma3", _TEXT["gemma3_text"], "gemma3_text",
        # What a config leaves out, mlx-lm and transformers put alike.
        windows=by_sixes, required=("sliding_window",),
    ),
    _wrapped("gemma4", _TEXT["gemma4_text"], "gemma4_text"),
    _wrapped("mistral3", _TEXT["ministral3"], "ministral3"),
    _wrapped("mistral3", _TEXT["mistral"], "mistral"),
    _wrapped("qwen2_vl", _TEXT["qwen2"], "qwen2_vl_text", "qwen2"),
    _wrapped("qwen2_5_vl", _TEXT["qwen2"], "qwen2_5_vl_text", "qwen2", module="qwen2_vl"),
    _wrapped("qwen3_vl", _TEXT["qwen3"], "qwen3_vl_text", "qwen3"),
    _wrapped("qwen3_vl_moe", _TEXT["qwen3_moe"], "qwen3_vl_moe_text", "qwen3_moe"),
)  # fmt: skip
_counts = Counter(family.model_type for family in _LISTED)

FAMILIES: Mapping[str, Family] = {
    f"{family.model_type} ({family.text_types[0]})"
    if _counts[family.model_type] > 1
    else family.model_type: family
    for family in _LISTED
}
"""By model_type, with the text model's in brackets where a wrapper holds one of several."""
