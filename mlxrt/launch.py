"""From settings to an engine. Decides the BLAS, which must be loaded before MLX is; imports no mlx
itself."""

from __future__ import annotations

from mlxrt import blas
from mlxrt.config import ConfigError, Settings
from mlxrt.engine.base import Engine


def choose_blas(choice: str) -> None:
    """Loads OpenBLAS where the setting `blas` and the installation say so. Before anything imports
    mlx.core.

    Raises:
        ConfigError: "openblas" was asked for and is not installed.
    """
    if choice != "reference" and blas.load_openblas() is None and choice == "openblas":
        raise ConfigError("blas: openblas is not installed; install mlxrt with the extra `cpu`")


def make_engine(settings: Settings, *, poison_pool: bool = False) -> Engine:
    """An engine that is not started yet: the fake one, or MLX's.

    Args:
        poison_pool: fill the pool with NaN first, so that whatever reads a position it must not
            read shows.

    Raises:
        ConfigError: the settings can't be met by this installation.
    """
    if settings.fake:
        return _fake_engine(settings)
    choose_blas(settings.blas)
    from mlxrt.engine.engine_config import EngineConfig
    from mlxrt.engine.mlx_engine import MlxEngine

    limits = settings.limits
    return MlxEngine(
        EngineConfig(
            model=settings.model,
            dtype=settings.dtype,
            attention=settings.attention,
            compiled=settings.compiled,
            fused=settings.fused,
            block_size=settings.block_size,
            num_blocks=settings.num_blocks,
            window_num_blocks=settings.window_num_blocks,
            memory_fraction=settings.memory_fraction,
            max_model_length=limits.max_model_length,
            max_step_rows=limits.max_step_rows,
            max_step_sequences=limits.max_step_sequences,
            max_step_drafts=limits.max_step_drafts,
            max_logits_rows=limits.max_logits_rows,
            row_buckets=settings.row_buckets,
            poison_pool=poison_pool,
            accept_dropped_semantics=settings.accept_mlx_lm_semantics,
        )
    )


def _fake_engine(settings: Settings) -> Engine:
    from mlxrt.testing.fake_engine import FakeEngine

    fake = settings.fake_model
    return FakeEngine(
        vocabulary_size=fake.vocabulary_size,
        block_size=settings.block_size,
        num_blocks=settings.num_blocks or fake.num_blocks,
        window_num_blocks=settings.window_num_blocks,
        windows=fake.windows,
        max_model_length=settings.limits.max_model_length,
        threaded=fake.step_ms > 0,
        step_s=fake.step_ms / 1000,
    )
