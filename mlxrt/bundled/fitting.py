"""The training loop: AdamW, warm-up and cosine, bounded by steps and by wall-clock time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.dropout import Dropout
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3

from mlxrt.bundled.evaluation import cross_entropy, stream_loss
from mlxrt.bundled.tokens import Tokens, Windows

Parameters = dict[str, Any]
"""A tree of arrays, as `Module.parameters` returns it."""


@dataclass(frozen=True)
class Hyperparameters:
    """What a run is determined by, besides the corpus.

    Attributes:
        steps: optimizer steps at most.
        max_seconds: wall-clock limit of the loop; the schedule follows whichever limit is nearer,
            so that the learning rate has reached its end when the run stops.
        batch: windows a step.
        length: tokens a window.
        peak_learning_rate: reached after `warmup_steps`, then a cosine to zero.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's, on every parameter.
        clip_norm: limit of the gradient's global norm.
        dropout: probability of dropping a feature where attention and feed-forward return to the
            residual stream, in [0, 1).
        library_share: probability that a window comes from the library, not from its tests.
        compute_dtype: of the forward and backward pass; parameters and moments are float32.
        seed: of the initial weights and of the windows drawn.
    """

    steps: int = 15000
    max_seconds: float = 440.0
    batch: int = 32
    length: int = 1024
    peak_learning_rate: float = 6e-3
    warmup_steps: int = 300
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    dropout: float = 0.1
    library_share: float = 0.5
    compute_dtype: str = "bfloat16"
    seed: int = 20

    def learning_rate(self, step: int, elapsed_s: float) -> float:
        """Returns the rate of a step that starts `elapsed_s` after the loop did."""
        progress = min(1.0, max(step / self.steps, elapsed_s / self.max_seconds))
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass
class Report:
    """What a run measured.

    Attributes:
        device: the device's name, as MLX tells it.
        software: versions of the packages that trained.
        steps: optimizer steps done.
        seconds: wall-clock time of the loop, evaluations included.
        tokens_seen: tokens predicted in training, repetitions counted.
        train_loss: mean loss of the last 100 steps in nats a token, dropout included.
        curve: at each evaluation: step, seconds, training loss, held-out losses.
    """

    device: str
    software: dict[str, str]
    steps: int = 0
    seconds: float = 0.0
    tokens_seen: int = 0
    train_loss: float = math.nan
    curve: list[dict[str, float]] = field(default_factory=list)


class DroppedLinear(Linear):
    """A linear layer with dropout on its output; its parameters bear the wrapped layer's names."""

    def __init__(self, wrapped: Linear, probability: float) -> None:
        super().__init__(1, 1, bias=False)
        self.weight = wrapped.weight
        self._dropout = Dropout(probability)

    def __call__(self, x: mx.array) -> mx.array:
        """Applies the layer; drops features only in training mode."""
        return self._dropout(super().__call__(x)) if self.training else super().__call__(x)


class Fit:
    """One training run over token streams; `run` trains and reports, then `model` gives the result.

    It owns all MLX state and must be used from one thread.
    """

    def __init__(
        self,
        config: dict[str, Any],
        streams: dict[str, Tokens],
        windows: Windows,
        settings: Hyperparameters,
    ) -> None:
        mx.random.seed(settings.seed)
        self._settings = settings
        self._streams = streams
        self._windows = windows
        self._random = np.random.default_rng(settings.seed)
        self._dtype: mx.Dtype = getattr(mx, settings.compute_dtype)
        self._model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
        for layer in self._model.model.layers:
            layer.self_attn.o_proj = DroppedLinear(layer.self_attn.o_proj, settings.dropout)
            layer.mlp.down_proj = DroppedLinear(layer.mlp.down_proj, settings.dropout)
        self._master: dict[str, Parameters] = {"model": self._model.parameters()}
        self._optimizer = optim.AdamW(
            learning_rate=0.0,
            betas=list(settings.betas),
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self._optimizer.init(self._master["model"])
        self._recent: list[mx.array] = []

    def run(self, evaluate_every: int, checkpoint: Path | None = None) -> Report:
        """Trains to the limit; writes `checkpoint` at every evaluation, if given."""
        settings = self._settings
        packages = ("mlx", "mlx-lm", "tokenizers")
        report = Report(device_name(), {name: version(name) for name in packages})
        step_of = self._compiled_step()
        self._model.train()
        begin = time.monotonic()
        for step in range(settings.steps):
            elapsed_s = time.monotonic() - begin
            if elapsed_s >= settings.max_seconds:
                break
            self._optimizer.learning_rate = settings.learning_rate(step, elapsed_s)
            batch = mx.array(self._windows.draw(settings.batch, self._random))
            self._recent = [*self._recent[-99:], step_of(batch)]
            mx.async_eval(self._master, self._optimizer.state, self._recent[-1])  # type: ignore[no-untyped-call]
            mx.eval(self._recent[-2:-1])
            report.steps = step + 1
            if report.steps % evaluate_every == 0:
                self._record(report, time.monotonic() - begin, checkpoint)
        report.seconds = time.monotonic() - begin
        if not report.curve or report.curve[-1]["step"] != report.steps:
            self._record(report, report.seconds, checkpoint)
        report.tokens_seen = report.steps * settings.batch * settings.length
        report.train_loss = report.curve[-1]["train_loss"]
        return report

    def model(self) -> qwen3.Model:
        """Returns the model with its parameters in bfloat16, as exported, for inference."""
        self._model.update(tree_map(lambda p: p.astype(mx.bfloat16), self._master["model"]))
        mx.eval(self._model.parameters())
        self._model.eval()
        return self._model

    def _compiled_step(self) -> Callable[[mx.array], mx.array]:
        state = [self._master, self._optimizer.state, mx.random.state]

        def loss_of(parameters: Parameters, batch: mx.array) -> mx.array:
            self._model.update(tree_map(lambda p: p.astype(self._dtype), parameters))
            return cross_entropy(self._model(batch[:, :-1]), batch[:, 1:])

        @partial(mx.compile, inputs=state, outputs=state)
        def step(batch: mx.array) -> mx.array:
            loss, gradients = mx.value_and_grad(loss_of)(self._master["model"], batch)
            gradients, _ = optim.clip_grad_norm(gradients, self._settings.clip_norm)  # type: ignore[no-untyped-call]
            self._master["model"] = self._optimizer.apply_gradients(
                gradients, self._master["model"]
            )
            return loss

        return step

    def _record(self, report: Report, elapsed_s: float, checkpoint: Path | None) -> None:
        model = self.model()
        point = {
            "step": report.steps,
            "seconds": round(elapsed_s, 1),
            "train_loss": float(np.mean([np.asarray(loss) for loss in self._recent])),
        }
        for name in ("held_out_library", "held_out_tests"):
            point[name] = stream_loss(model, self._streams[name], self._settings.length, 32)
        report.curve.append({key: round(value, 4) for key, value in point.items()})
        print(report.curve[-1], file=sys.stderr, flush=True)
        model.train()
        if checkpoint is not None:
            save_weights(model, checkpoint)


def save_weights(model: Module, path: Path) -> None:
    """Writes the model's parameters as safetensors, under mlx-lm's names."""
    parameters: Parameters = model.parameters()  # type: ignore[no-untyped-call]
    mx.save_safetensors(str(path), dict(tree_flatten(parameters)), {"format": "mlx"})


def device_name() -> str:
    """Returns the default device's name, or its kind where MLX knows no name."""
    kind = mx.default_device()
    return str(mx.device_info(kind).get("device_name", kind))


def report_json(report: Report, settings: Hyperparameters) -> dict[str, Any]:
    """Returns the report and the hyperparameters it belongs to as plain JSON values."""
    return {"hyperparameters": asdict(settings), **asdict(report)}
