"""Loads a model and lays out its memory: everything between a config and a runner that is warm. The
engine's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import structlog
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxrt.attention import (
    AttentionChoice,
    AttentionPath,
    LayerShape,
    PagedLayer,
    StepBinding,
    allocate_pool,
    choose_path,
    install_seam,
    pools_of,
)
from mlxrt.core.model import Group, GroupKind, ModelFacts
from mlxrt.engine.base import EngineDescription
from mlxrt.engine.device import Device, current_device
from mlxrt.engine.engine_config import EngineConfig, default_buckets
from mlxrt.engine.forward import Forward, LayerGroup
from mlxrt.engine.huge_pages import collapse
from mlxrt.engine.memory_plan import (
    CPU_POOL_BYTES_MAX,
    GroupBlocks,
    MemoryPlan,
    StepShape,
    plan_memory,
)
from mlxrt.engine.prompt_rows import CHUNK
from mlxrt.engine.runner import StepRunner
from mlxrt.engine.sampling import Sampler, choose_sampler
from mlxrt.engine.warm_up import warm_up
from mlxrt.models import Checkpoint, Family, ModelError, check_semantics, family_of, read_checkpoint
from mlxrt.models.dimensions import activation_widths
from mlxrt.models.folder import resolve_folder
from mlxrt.models.loading import build_model
from mlxrt.models.merging import NotFusedError
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
    sampler: Sampler
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
    family = family_of(checkpoint)
    accepted = check_semantics(checkpoint, family, accept_dropped=config.accept_dropped_semantics)
    if accepted:
        _log.warning("config fields without effect, as in mlx-lm", fields=accepted)
    device = current_device()
    _allow_compiling(config, device)
    max_length = min(
        config.max_model_length, checkpoint.max_model_length or config.max_model_length
    )
    buckets = _buckets(config, device)
    dtype = _dtype(config, device)
    model = build_model(checkpoint, dtype)
    install_seam(model)
    shape = probe(model)
    family.check_windows(checkpoint.config, shape.windows)
    chosen = choose_path(AttentionChoice(config.attention), shape.calls, config.block_size)
    if chosen.reason:
        _log.warning("gather attention instead of native", reason=chosen.reason)
    sampler = _sampler(config, shape)
    groups = partition(shape.windows)
    step_shape = _step_shape(checkpoint, config, shape, max_length, buckets, chosen.path)
    plan = _plan(checkpoint, config, device, dtype, shape, groups, step_shape)
    _log.info("memory plan", **plan.figures_mib())
    _hold_mlx_to(plan)
    progress(0.05, f"loading {plan.weight_bytes >> 20} MiB of weights")
    is_fused = _fuse(config, model, family, shape, chosen.path)
    weights = _load_weights(model)
    progress(0.7, f"allocating {plan.pool_bytes >> 20} MiB of KV pool")
    forward = Forward(
        model,
        install_row_selector(model, family.inner),
        _layer_groups(groups, shape.layers, plan, chosen.path),
        chosen.path,
        sampler,
        compiles=_compiles(config, device, chosen.path),
        is_fused=is_fused,
    )
    _use_huge_pages(device, [*weights, *pools_of(forward.layers)])
    runner = StepRunner(
        forward,
        block_size=config.block_size,
        vocabulary_size=shape.vocabulary_size,
        buckets=buckets,
    )
    progress(0.8, "warming up")
    warm_up(runner, buckets, config, max_length)
    if config.poison_pool:
        forward.poison()
    mx.reset_peak_memory()
    return Assembled(
        runner=runner,
        path=chosen.path,
        sampler=sampler,
        facts=_facts(checkpoint, config, plan, shape, groups, max_length),
        description=_describe(device, chosen.path),
        plan=plan,
        folder=Path(checkpoint.folder),
        path_reason=chosen.reason,
    )


def _sampler(config: EngineConfig, shape: ModelShape) -> Sampler:
    wants_native = config.attention != AttentionChoice.GATHER.value
    dtype = shape.calls[0].query_dtype
    chosen = choose_sampler(wants_native, shape.vocabulary_size, dtype)
    if chosen.reason:
        _log.warning("plain sampling instead of native", reason=chosen.reason)
    return chosen.sampler


def _fuse(
    config: EngineConfig, model: Module, family: Family, shape: ModelShape, path: AttentionPath
) -> bool:
    """Fuses the model's layers, if it can be; said once where that was not to be.

    Raises:
        ModelError: it was asked for, and can't be.
    """
    if config.fused == "off":
        return False
    try:
        if path.name != "native":
            raise NotFusedError("attention takes the gather path")
        from mlxrt.models.fused import fuse

        fuse(model, family.inner, shape.layers)
    except NotFusedError as error:
        if config.fused == "on":
            raise ModelError(f"fused: on, but the model can't be fused: {error}") from error
        _log.info("layers are not fused", reason=str(error))
        return False
    return True


def _hold_mlx_to(plan: MemoryPlan) -> None:
    # What is freed and not reused at once would else pile up; a step's worth is worth keeping.
    mx.set_cache_limit(plan.step_bytes)
    # MLX builds layers ahead of the device, whose arrays live at once: it waits at the limit.
    mx.set_memory_limit(plan.limit_bytes)


def _load_weights(model: Module) -> list[mx.array]:
    """Evaluates the parameters and lists them."""
    parameters = model.parameters()  # type: ignore[no-untyped-call]
    mx.eval(parameters)
    leaves: list[tuple[str, mx.array]] = tree_flatten(parameters)  # type: ignore[assignment]
    return [array for _, array in leaves]


def _use_huge_pages(device: Device, arrays: Sequence[mx.array]) -> None:
    """Moves arrays of a CPU into huge pages; says how much of them."""
    if device.kind != "cpu":
        return
    pages = collapse(arrays)
    mebibytes = {"mib": pages.covered_bytes >> 20, "of_mib": pages.wanted_bytes >> 20}
    _log.info("huge pages", **mebibytes, reason=pages.reason or None)


def _allow_compiling(config: EngineConfig, device: Device) -> None:
    """Turns mx.compile off, on or leaves it, for the whole process."""
    if config.compiled == "on":
        mx.enable_compile()
    elif device.kind == "cpu":
        # There it calls a C++ compiler at run time, or does nothing where none is installed; it
        # gains nothing and changes no bit.
        mx.disable_compile()


def _compiles(config: EngineConfig, device: Device, path: AttentionPath) -> bool:
    """Whether decode steps are compiled; said once where they are not on a GPU.

    Raises:
        ModelError: it was asked for, and the path can't.
    """
    if config.compiled == "off" or (config.compiled == "auto" and device.kind == "cpu"):
        return False
    if path.name == "native":
        return True
    reason = "attention takes the gather path"
    if config.compiled == "on":
        raise ModelError(f"compiled: on, but steps can't be compiled: {reason}")
    _log.warning("decode steps are built anew instead of replayed", reason=reason)
    return False


def _dtype(config: EngineConfig, device: Device) -> mx.Dtype | None:
    """The type to cast to; None keeps the checkpoint's."""
    if config.dtype == "auto":
        return mx.float32 if device.kind == "cpu" else None
    return _DTYPES[config.dtype]


def _buckets(config: EngineConfig, device: Device) -> tuple[int, ...]:
    if config.row_buckets is not None:
        return config.row_buckets
    return () if device.kind == "cpu" else default_buckets(config.max_step_rows)


def _step_shape(
    checkpoint: Checkpoint,
    config: EngineConfig,
    shape: ModelShape,
    max_length: int,
    buckets: tuple[int, ...],
    path: AttentionPath,
) -> StepShape:
    hidden, intermediate = activation_widths(checkpoint)
    return StepShape(
        rows=max(config.max_step_rows, *buckets, 1),
        # A piece of the prompt's rows may be in the head beside those that sample.
        selected_rows=min(config.max_step_sequences + config.max_step_drafts, config.max_step_rows)
        + min(CHUNK, config.max_step_rows),
        context=max_length,
        hidden=hidden,
        intermediate=intermediate,
        queries=shape.query_width,
        keys=shape.key_width,
        heads=shape.query_heads,
        vocabulary_size=shape.vocabulary_size,
        item_bytes=shape.layers[0].dtype.size,
        gather=path.name == "gather",
    )


def _plan(
    checkpoint: Checkpoint,
    config: EngineConfig,
    device: Device,
    dtype: mx.Dtype | None,
    shape: ModelShape,
    groups: Mapping[int, tuple[int, ...]],
    step_shape: StepShape,
) -> MemoryPlan:
    return plan_memory(
        device_bytes=device.memory_bytes,
        memory_fraction=config.memory_fraction,
        weight_bytes=checkpoint.weight_bytes(None if dtype is None else dtype.size),
        step_bytes=step_shape.step_bytes(),
        groups=[
            GroupBlocks(
                window, sum(shape.layers[index].block_bytes(config.block_size) for index in indices)
            )
            for window, indices in groups.items()
        ],
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        window_num_blocks=config.window_num_blocks,
        pool_bytes_max=CPU_POOL_BYTES_MAX if device.kind == "cpu" else None,
    )


def partition(windows: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The layers by window, in the order of the group numbers: full attention first."""
    return {
        window: tuple(index for index, each in enumerate(windows) if each == window)
        for window in sorted(set(windows))
    }


def _layer_groups(
    groups: Mapping[int, tuple[int, ...]],
    shapes: Sequence[LayerShape],
    plan: MemoryPlan,
    path: AttentionPath,
) -> list[LayerGroup]:
    layer_groups = []
    for (window, indices), blocks in zip(groups.items(), plan.groups, strict=True):
        binding = StepBinding(path, window)
        chosen = [shapes[index] for index in indices]
        arrays = allocate_pool(chosen, blocks.block_count, plan.block_size)
        layers = [PagedLayer(keys, values, binding) for keys, values in arrays]
        layer_groups.append(LayerGroup(binding, indices, layers))
    return layer_groups


def _facts(
    checkpoint: Checkpoint,
    config: EngineConfig,
    plan: MemoryPlan,
    shape: ModelShape,
    groups: Mapping[int, tuple[int, ...]],
    max_length: int,
) -> ModelFacts:
    group_facts = [
        Group(
            kind=GroupKind.WINDOW if window else GroupKind.FULL,
            layer_indices=indices,
            window=window,
            block_count=blocks.block_count,
            block_bytes=blocks.block_bytes,
        )
        for (window, indices), blocks in zip(groups.items(), plan.groups, strict=True)
    ]
    return ModelFacts(
        model_name=config.model,
        model_type=checkpoint.model_type,
        vocabulary_size=shape.vocabulary_size,
        max_model_length=max_length,
        kv_data_type=str(shape.layers[0].dtype).removeprefix("mlx.core."),
        block_size=config.block_size,
        groups=tuple(group_facts),
        end_token_ids=checkpoint.end_token_ids,
        fingerprint=checkpoint.fingerprint,
        begin_token_ids=checkpoint.begin_token_ids,
    )


def _describe(device: Device, path: AttentionPath) -> EngineDescription:
    from mlxrt import blas

    return EngineDescription(
        device=device.description,
        attention_path=path.name,
        blas=blas.active() if device.kind == "cpu" else "",
        mlx_version=metadata.version("mlx"),
    )
