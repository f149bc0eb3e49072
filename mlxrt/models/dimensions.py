"""Widths of a model's activations, for the estimate of the worst step."""

from __future__ import annotations

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError

_HIDDEN = ("hidden_size", "n_embd", "d_model", "model_dim")
_INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "n_inner", "expert_ffn_hidden_size")
_CHOSEN_EXPERTS = ("num_experts_per_tok", "moe_topk", "num_experts_per_token")


def activation_widths(checkpoint: Checkpoint) -> tuple[int, int]:
    """Elements per row of the residual stream and of all that an MLP holds between its projections.

    A mixture of experts counts each expert that a row passes through, and the shared ones.

    Raises:
        ModelError: config.json has no usable hidden size.
    """
    config = checkpoint.config
    try:
        hidden = int(next(config[name] for name in _HIDDEN if config.get(name)))
        given = [config[name] for name in _INTERMEDIATE if config.get(name)]
        dense = max((int(_largest(value)) for value in given), default=4 * hidden)
        chosen = next((_largest(config[name]) for name in _CHOSEN_EXPERTS if config.get(name)), 0)
        expert = int(_largest(config.get("moe_intermediate_size") or dense))
    except (StopIteration, TypeError, ValueError) as error:
        raise ModelError(f"{checkpoint.folder}/config.json: no usable hidden size") from error
    return hidden, max(dense, (int(chosen) + 1) * expert if chosen else 0)


def _largest(value: int | list[int]) -> int:
    return max(value) if isinstance(value, list) else value
