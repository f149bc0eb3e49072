"""Loads a model and lays out its memory: everything between a config and a runner that is warm. The
engine's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import structlog

from mlxrt.attention import (
    AttentionChoice,
    AttentionPath,
    LayerShape,
    PagedLayer,
    StepBinding,
    allocate_pool,
    choose_path,
    install_seam,
)
from mlxrt.core.model import Group, GroupKind, ModelFacts
from mlxrt.engine.base import EngineDescription
from mlxrt.engine.device import Device, current_device
from mlxrt.engine.engine_config import EngineConfig, default_buckets
from mlxrt.engine.forward import Forward
from mlxrt.engine.memory_plan import CPU_POOL_BYTES_MAX, MemoryPlan, StepShape, plan_memory
from mlxrt.engine.runner import StepRunner
from mlxrt.engine.warm_up import warm_up
from mlxrt.models import Checkpoint, ModelError, check_semantics, family_of, read_checkpoint
from mlxrt.models.folder import resolve_folder
from mlxrt.models.loading import load_model
from mlxrt.models.probe import ModelShape, probe
from mlxrt.models.rows import install_row_selector

Progress = Callable[[float, str], None]
_log = structlog.get_logger("mlxrt.engine")

_DTYPES: Mapping[str, mx.Dtype] = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Assembled:
    """A loaded and warm engine.

    Attributes:
        folder: where the checkpoint and its tokenizer lie.
        path_reason: why `auto` did not take the native path; else empty.
    """

    runner: StepRunner
    path: AttentionPath
    facts: ModelFacts
    description: EngineDescription
    plan: MemoryPlan
    folder: Path
    path_reason: str


def assemble(config: EngineConfig, progress: Progress) -> Assembled:
    """Loads, plans, allocates and warms.

    Raises:
        ModelError: the model can't be served, or does not fit; the message says why.
        ImportError: the native path was asked for and can't be loaded.
    """
    progress(0.0, "reading the checkpoint")
    checkpoint = read_checkpoint(resolve_folder(config.model))
    accepted = check_semantics(
        checkpoint, family_of(checkpoint), accept_dropped=config.accept_dropped_semantics
    )
    if accepted:
        _log.warning("config fields without effect, as in mlx-lm", fields=accepted)
    device = current_device()
    if device.kind == "cpu":
        # There mx.compile calls a C++ compiler at run time, or does nothing where none is
        # installed; it gains nothing and changes no bit.
        mx.disable_compile()
    chosen = choose_path(AttentionChoice(config.attention))
    if chosen.reason:
        _log.warning("gather attention instead of native", reason=chosen.reason)
    dtype = _dtype(config, device)
    max_length = min(
        config.max_model_length, checkpoint.max_model_length or config.max_model_length
    )
    buckets = _buckets(config, device)
    gather = chosen.path.name == "gather"
    shape = _step_shape(checkpoint, config, dtype, max_length, buckets, gather)
    plan = _plan(checkpoint, config, device, dtype, shape)
    _log.info("memory plan", **plan.figures_mib())
    # What is freed and not reused at once would else pile up; a step's worth of it is worth
    # keeping.
    mx.set_cache_limit(plan.step_bytes)
    progress(0.05, f"loading {plan.weight_bytes >> 20} MiB of weights")
    model = load_model(checkpoint, dtype)
    install_seam(model)
    model_shape = probe(model, int(checkpoint.config["num_hidden_layers"]))
    _check_shape(model_shape, checkpoint, plan)
    progress(0.7, f"allocating {plan.pool_bytes >> 20} MiB of KV pool")
    forward = _forward(model, model_shape.layers, plan, chosen.path, config.poison_pool)
    runner = StepRunner(
        forward,
        block_size=config.block_size,
        vocabulary_size=model_shape.vocabulary_size,
        buckets=buckets,
        launches_ahead=device.kind != "cpu",
    )
    progress(0.8, "warming up")
    warm_up(runner, buckets, config, max_length)
    mx.reset_peak_memory()
    return Assembled(
        runner=runner,
        path=chosen.path,
        facts=_facts(checkpoint, config, plan, model_shape, max_length),
        description=_describe(device, chosen.path),
        plan=plan,
        folder=Path(checkpoint.folder),
        path_reason=chosen.reason,
    )


def _dtype(config: EngineConfig, device: Device) -> mx.Dtype | None:
    """The type to cast to; None keeps the checkpoint's."""
    if config.dtype == "auto":
        return mx.float32 if device.kind == "cpu" else None
    return _DTYPES[config.dtype]


def _buckets(config: EngineConfig, device: Device) -> tuple[int, ...]:
    if config.row_buckets is not None:
        return config.row_buckets
    return () if device.kind == "cpu" else default_buckets(config.max_step_rows)


def _widths(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, KV heads and head width that the config gives."""
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return heads, kv_heads, int(config.get("head_dim") or config["hidden_size"] // heads)


def _item_bytes(checkpoint: Checkpoint, dtype: mx.Dtype | None) -> int:
    """Width of an activation: the cast type's, else the widest floating-point type in the
    checkpoint.
    """
    if dtype is not None:
        return dtype.size
    types = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return 4 if "F32" in types else 2


def _step_shape(
    checkpoint: Checkpoint,
    config: EngineConfig,
    dtype: mx.Dtype | None,
    max_length: int,
    buckets: tuple[int, ...],
    gather: bool,
) -> StepShape:
    fields = checkpoint.config
    try:
        heads, kv_heads, head_width = _widths(fields)
        return StepShape(
            rows=max(config.max_step_rows, *buckets, 1),
            selected_rows=min(config.max_step_sequences, config.max_step_rows),
            context=max_length,
            hidden=int(fields["hidden_size"]),
            intermediate=int(fields["intermediate_size"]),
            queries=heads * head_width,
            keys=kv_heads * head_width,
            heads=heads,
            vocabulary_size=int(fields["vocab_size"]),
            item_bytes=_item_bytes(checkpoint, dtype),
            gather=gather,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{checkpoint.folder}/config.json: {error!r}") from error


def _plan(
    checkpoint: Checkpoint,
    config: EngineConfig,
    device: Device,
    dtype: mx.Dtype | None,
    shape: StepShape,
) -> MemoryPlan:
    block_bytes = 2 * shape.keys * shape.item_bytes * config.block_size
    return plan_memory(
        device_bytes=device.memory_bytes,
        memory_fraction=config.memory_fraction,
        weight_bytes=checkpoint.weight_bytes(None if dtype is None else dtype.size),
        step_bytes=shape.step_bytes(),
        block_bytes=block_bytes * int(checkpoint.config["num_hidden_layers"]),
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        pool_bytes_max=CPU_POOL_BYTES_MAX if device.kind == "cpu" else None,
    )


def _check_shape(shape: ModelShape, checkpoint: Checkpoint, plan: MemoryPlan) -> None:
    """Holds the loaded model against what was planned from its config."""
    block_bytes = sum(layer.block_bytes(plan.block_size) for layer in shape.layers)
    if block_bytes != plan.block_bytes:
        raise ModelError(
            f"{checkpoint.folder}: a block takes {block_bytes} bytes, "
            f"{plan.block_bytes} planned from the config"
        )
    if shape.vocabulary_size != checkpoint.config["vocab_size"]:
        raise ModelError(
            f"{checkpoint.folder}: {shape.vocabulary_size} logits, "
            f"vocab_size {checkpoint.config['vocab_size']}"
        )


def _forward(
    model: Any,
    shapes: tuple[LayerShape, ...],
    plan: MemoryPlan,
    path: AttentionPath,
    poison: bool,
) -> Forward:
    binding = StepBinding(path)
    arrays = allocate_pool(shapes, plan.num_blocks, plan.block_size, poison=poison)
    layers = [PagedLayer(keys, values, binding) for keys, values in arrays]
    return Forward(model, install_row_selector(model), layers, [binding], path)


def _facts(
    checkpoint: Checkpoint,
    config: EngineConfig,
    plan: MemoryPlan,
    shape: ModelShape,
    max_length: int,
) -> ModelFacts:
    group = Group(
        kind=GroupKind.FULL,
        layer_indices=tuple(range(len(shape.layers))),
        window=0,
        block_count=plan.num_blocks,
        block_bytes=plan.block_bytes,
    )
    return ModelFacts(
        model_name=config.model,
        model_type=checkpoint.model_type,
        vocabulary_size=shape.vocabulary_size,
        max_model_length=max_length,
        kv_data_type=str(shape.layers[0].dtype).removeprefix("mlx.core."),
        block_size=config.block_size,
        groups=(group,),
        end_token_ids=checkpoint.end_token_ids,
        fingerprint=checkpoint.fingerprint,
    )


def _describe(device: Device, path: AttentionPath) -> EngineDescription:
    from mlxrt import blas

    return EngineDescription(
        device=device.description,
        attention_path=path.name,
        blas=blas.active() if device.kind == "cpu" else "",
        mlx_version=metadata.version("mlx"),
    )
