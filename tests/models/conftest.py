"""Tiny random checkpoints, and an engine driven by hand-made plans."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlxrt.core.model import ModelFacts
from mlxrt.core.step import StepOutcome, StepPlan
from mlxrt.engine.base import EngineDescription
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.errors import MlxrtError
from mlxrt.models.loading import import_mlx_lm_loader

TIMEOUT_S = 60

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": 384,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 7,
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "vocab_size": 288,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "eos_token_id": [3, 5],
    },
}
CONFIGS["llama_llama3_rope"] = {
    **CONFIGS["llama"],
    "attention_bias": False,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def write_checkpoint(
    folder: Path, config: dict[str, Any], *, bits: int | None = None, seed: int = 1
) -> Path:
    """Saves a random model of `config` as Hugging Face lays it out; quantised to `bits` where given."""
    import importlib

    import_mlx_lm_loader()
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    # Wider than mlx's default, so that greedy tokens don't fall into a short cycle.
    weights = [
        (name, value if value.ndim < 2 else mx.random.normal(value.shape) * 0.15)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(weights)
    content = dict(config)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        content["quantization"] = {"group_size": 32, "bits": bits}
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of a tiny checkpoint by name and bits; made once."""
    made: dict[tuple[str, int | None], Path] = {}

    def get(name: str, bits: int | None = None) -> Path:
        if (name, bits) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{bits}")
            made[name, bits] = write_checkpoint(folder, CONFIGS[name], bits=bits)
        return made[name, bits]

    return get


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.outcomes: queue.Queue[StepOutcome | MlxrtError] = queue.Queue()
        self.ready: queue.Queue[tuple[ModelFacts, EngineDescription] | MlxrtError] = queue.Queue()
        self.progress: list[tuple[float, str]] = []

    def on_progress(self, fraction: float, activity: str) -> None:
        self.progress.append((fraction, activity))

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        self.ready.put((facts, description))

    def on_outcome(self, outcome: StepOutcome) -> None:
        self.outcomes.put(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        self.ready.put(error)
        self.outcomes.put(error)


class RunningEngine:
    """An engine that is ready, with synchronous access to its outcomes."""

    def __init__(self, config: EngineConfig) -> None:
        self.heard = Heard()
        self.engine = MlxEngine(config)
        self.engine.start(self.heard)
        ready = self.heard.ready.get(timeout=TIMEOUT_S)
        if isinstance(ready, MlxrtError):
            self.engine.close()
            raise ready
        self.facts, self.description = ready

    def submit(self, plan: StepPlan) -> None:
        self.engine.submit(plan)

    def outcome(self) -> StepOutcome:
        """The next outcome."""
        outcome = self.heard.outcomes.get(timeout=TIMEOUT_S)
        if isinstance(outcome, MlxrtError):
            raise outcome
        return outcome

    def run(self, plan: StepPlan) -> StepOutcome:
        """Runs one plan to its end."""
        self.submit(plan)
        return self.outcome()


@pytest.fixture
def start_engine() -> Iterator[Callable[..., RunningEngine]]:
    """Starts engines with small pools full of NaN; closes them after the test."""
    started: list[RunningEngine] = []

    def start(folder: Path, **settings: Any) -> RunningEngine:
        chosen: dict[str, Any] = {
            "block_size": 4,
            "num_blocks": 512,
            "max_step_rows": 64,
            "max_step_sequences": 16,
            "max_model_length": 512,
            "poison_pool": True,
        }
        chosen.update(settings)
        running = RunningEngine(EngineConfig(model=str(folder), **chosen))
        started.append(running)
        return running

    yield start
    for running in started:
        running.engine.close()
