"""The registry: a family runs only if it is listed here, and is listed only if it passes the
comparison with mlx-lm.

Each entry says which rope types the family may have, which fields of config.json change numbers but
are dropped by mlx-lm, and what paged execution can't serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError
from mlxrt.models.rope import rope_findings

Config = Mapping[str, Any]

_SILU = ("silu", "swish", None)
_NO_BIAS = (False, None)

# Fields of other architectures; a checkpoint that sets one of them is not what its model_type says.
_FOREIGN: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "clip_qkv": (None,),
    "partial_rotary_factor": (None, 1.0),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "attention_multiplier": (None,),
    "alibi": (None, False),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One of mlx-lm's families.

    Attributes:
        model_type: its name in config.json; mlx-lm's module has the same name.
        dropped: fields that change numbers and that mlx-lm ignores, each with the values at which
            it changes none.
        dropped_by_rule: what else mlx-lm ignores, found by looking at several fields.
        unservable: what a paged pool can't serve in this family; no flag helps.
        inner: the attribute of the model that is the model without its head.
    """

    model_type: str
    dropped: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dropped_by_rule: Callable[[Checkpoint], list[str]] = lambda checkpoint: []
    unservable: Callable[[Config], list[str]] = lambda config: []
    inner: str = "model"

    def check_windows(self, config: Config, found: Sequence[int]) -> None:
        """Holds the windows that the model applies, by layer, against the config's.

        Raises:
            ModelError: they differ.
        """
        for index, window in enumerate(found):
            if window:
                raise ModelError(
                    f"layer {index} has a window of {window}, the config gives it none"
                )


def _sliding_layers(config: Config) -> list[str]:
    """Layer types other than full attention."""
    others = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    return [f"layer_types: {name}" for name in others]


def _qwen3_dropped(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config
    found = _sliding_layers(config)
    if config.get("use_sliding_window"):
        window = config.get("sliding_window")
        found.append(f"use_sliding_window: true (sliding_window: {window})")
    return found + rope_findings(config).dropped


def _llama_dropped(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config
    found = []
    if config.get("sliding_window") and not config.get("layer_types"):
        found.append(f"sliding_window: {config['sliding_window']} without layer_types")
    nested = config.get("rope_parameters") or {}
    if nested.get("rope_theta", 10000) != config.get("rope_theta", 10000):
        found.append(f"rope_parameters.rope_theta: {nested['rope_theta']}")
    if nested.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        found.append(f"rope_parameters.rope_type: {nested['rope_type']}")
    if "tie_word_embeddings" not in config and "lm_head.weight" in checkpoint.tensors:
        found.append(
            "tie_word_embeddings: absent, so that mlx-lm ties them and drops lm_head.weight"
        )
    return found + rope_findings(config).dropped


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            dropped={**_FOREIGN, "hidden_act": _SILU},
            dropped_by_rule=_llama_dropped,
            unservable=lambda config: _sliding_layers(config) + rope_findings(config).unservable,
        ),
        Family(
            model_type="qwen3",
            dropped={
                **_FOREIGN,
                "hidden_act": _SILU,
                "attention_bias": _NO_BIAS,
                "mlp_bias": _NO_BIAS,
            },
            dropped_by_rule=_qwen3_dropped,
            unservable=lambda config: rope_findings(config).unservable,
        ),
    )
}
"""By model_type."""


def family_of(checkpoint: Checkpoint) -> Family:
    """Returns the checkpoint's family.

    Raises:
        ModelError: it is not listed.
    """
    family = FAMILIES.get(checkpoint.model_type)
    if family is None:
        listed = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"model_type {checkpoint.model_type!r} is not served; listed families: {listed}"
        )
    return family
