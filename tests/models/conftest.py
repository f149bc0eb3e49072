"""Tiny random checkpoints, and an engine driven by hand-made plans."""

from __future__ import annotations

import copy
import json
import queue
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxrt.core.model import ModelFacts
from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Entry, Registration, StepOutcome, StepPlan, TableUpdate, TokenSource
from mlxrt.engine.base import EngineDescription
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.errors import MlxrtError
from mlxrt.models import Checkpoint, family_of
from mlxrt.models.checkpoint import flat_config
from mlxrt.models.loading import import_mlx_lm_loader

import_mlx_lm_loader()
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402

TIMEOUT_S = 120

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
    """Saves a random model of `config` as Hugging Face lays it out; quantised to `bits` where
    given.
    """
    import importlib

    import_mlx_lm_loader()
    family = family_of(Checkpoint(folder, flat_config(config), {}, ""))
    module = importlib.import_module(f"mlx_lm.models.{family.module_name}")
    mx.random.seed(seed)
    # A wrapper's arguments write into the text model's config.
    model: nn.Module = module.Model(module.ModelArgs.from_dict(copy.deepcopy(config)))
    # Wider than mlx's default, so that greedy tokens don't fall into a short cycle.
    model.load_weights(
        [
            (name, mx.random.normal(value.shape) * 0.15 + (0 if value.ndim > 1 else value))
            for name, value in tree_flatten(model.parameters())
        ]
    )
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


@pytest.fixture
def save_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny checkpoint by name, with other config fields."""

    def save(name: str, **fields: Any) -> Path:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        return write_checkpoint(folder, {**CONFIGS[name], **fields})

    return save


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


@dataclass
class Sequence:
    """What the scheduler knows of one sequence: tokens read, tokens known to exist, positions
    computed, blocks.
    """

    handle: int
    prompt: list[int]
    goal: int
    tokens: list[int] = field(default_factory=list)
    known: int = 0
    position: int = 0
    tables: list[list[int]] = field(default_factory=list)
    registered: bool = False
    table_sent: int = 0
    logits: dict[int, bytes] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.known >= len(self.prompt) + self.goal


Rows = tuple[Sequence, bool, int]
"""A sequence's part in a step: the sequence, whether it samples, and its length after the rows."""


class Scheduler:
    """A small deterministic scheduler that makes plans: chunked and mixed prefill, decode,
    scattered and recycled blocks, preemption and resumption, prefix sharing with copies, and two
    steps in flight. With `leave` it gives back the blocks that left a window.
    """

    def __init__(
        self, running: RunningEngine, seed: int, in_flight: int = 2, *, leave: bool = False
    ) -> None:
        self.running = running
        self.random = random.Random(seed)
        self.block_size = running.facts.block_size
        self.groups = running.facts.groups
        self.leave = leave
        self.free = [list(range(1, group.block_count)) for group in self.groups]
        for free in self.free:
            self.random.shuffle(free)
        self.owners: dict[tuple[int, int], int] = {}
        self.used_max = [0] * len(self.groups)
        self.in_flight = in_flight
        self.waiting: deque[list[Rows]] = deque()
        self.ticket = 0
        self.sequences: list[Sequence] = []
        self.plan = StepPlan(0)
        self.seen: Counter[str] = Counter()

    def add(self, prompt: list[int], goal: int) -> Sequence:
        """A sequence that starts with the next step."""
        sequence = Sequence(len(self.sequences) + 1, prompt, goal, list(prompt), len(prompt))
        sequence.tables = [[] for _ in self.groups]
        self.sequences.append(sequence)
        return sequence

    def share(self, source: Sequence, length: int, rest: list[int], goal: int) -> Sequence:
        """A sequence that begins with `length` computed tokens of the source's prompt: whole blocks
        shared, the rest copied.
        """
        assert length <= min(source.position, len(source.prompt))
        sequence = self.add(source.prompt[:length] + rest, goal)
        whole = length // self.block_size
        for group, table in enumerate(source.tables):
            sequence.tables[group] = table[:whole]
            for block in table[:whole]:
                self.owners[group, block] += 1
            if length % self.block_size:
                copy = self._allocate(group)
                self.plan.copies.append((group, table[whole], copy))
                sequence.tables[group].append(copy)
        sequence.position = length
        self.seen["shared"] += 1
        return sequence

    def preempt(self, sequence: Sequence) -> None:
        """Takes the blocks away; the next step of the sequence starts anew from the tokens that the
        engine keeps.
        """
        self._release(sequence)
        sequence.position, sequence.table_sent = 0, 0
        for group in range(len(self.groups)):
            self.plan.table_updates.append(TableUpdate(sequence.handle, group, 0, [], 0))
        self.seen["preempted"] += 1

    def drive(self, seed: int, *, steps_min: int, active_max: int = 4) -> int:
        """Keeps up to `active_max` sequences going for `steps_min` steps, then until all have
        reached their goals: chunks, decodes, shared prefixes, preemptions; answers the steps.
        """
        rng = random.Random(seed)
        active: list[Sequence] = []
        steps = 0
        while steps < steps_min or active:
            if steps < steps_min and len(active) < active_max:
                active.append(self._newcomer(active, rng))
            chosen = [s for s in active if rng.random() < 0.9]
            rng.shuffle(chosen)
            if not chosen:
                continue
            self.step(chosen, chunk=rng.choice((1, 3, 7)), logits=rng.random() < 0.1)
            steps += 1
            for sequence in [s for s in active if s.finished]:
                active.remove(sequence)
                self.retire(sequence)
            if active and rng.random() < 0.05:
                self.preempt(rng.choice(active))
        while self.waiting:
            self.read()
        return steps

    def _newcomer(self, active: list[Sequence], rng: random.Random) -> Sequence:
        """A new sequence; now and then one that begins as another did."""

        def prompt(low: int, high: int) -> list[int]:
            vocabulary_size = self.running.facts.vocabulary_size
            return [rng.randrange(vocabulary_size) for _ in range(rng.randint(low, high))]

        sources = [s for s in active if min(s.position, len(s.prompt)) >= 3]
        if sources and not self.leave and rng.random() < 0.4:
            source = rng.choice(sources)
            length = rng.randint(2, min(source.position, len(source.prompt)) - 1)
            return self.share(source, length, prompt(1, 9), rng.randint(10, 30))
        return self.add(prompt(1, 30), rng.randint(10, 50))

    def step(self, chosen: list[Sequence], chunk: int, logits: bool = False) -> None:
        """Submits one step in which each chosen sequence computes up to `chunk` rows; reads
        outcomes as needed.
        """
        plan = self.plan
        rows: list[Rows] = []
        entries: list[Rows] = []
        for sequence in chosen:
            start, count = sequence.position, min(chunk, sequence.known - sequence.position)
            sample = start + count == sequence.known
            self._register(sequence, start + count)
            if count == 1 and sample and start >= len(sequence.prompt) and not logits:
                plan.decode_handles.append(sequence.handle)
                plan.decode_starts.append(start)
                rows.append((sequence, True, start + count))
                self.seen["decode"] += 1
            else:
                plan.entries.append(
                    Entry(sequence.handle, start, count, TokenSource.REGISTERED, (), sample, logits)
                )
                entries.append((sequence, sample, start + count))
                self.seen["chunk"] += count > 1
            sequence.position += count
            sequence.known += sample
        self.seen["mixed"] += bool(rows and entries)
        self.submit(rows + entries)

    def submit(self, rows: list[Rows]) -> None:
        """Hands the plan over, then reads until there is room for one more."""
        self.ticket += 1
        self.plan.ticket = self.ticket
        self.running.submit(self.plan)
        self.plan = StepPlan(0)
        self.waiting.append(rows)
        while len(self.waiting) >= self.in_flight:
            self.read()

    def read(self) -> StepOutcome:
        """Reads the oldest outcome."""
        rows = self.waiting.popleft()
        outcome = self.running.outcome()
        assert outcome.failure is None, outcome.failure
        decoded = list(outcome.decode_tokens)
        assert not outcome.decode_details
        for index, (sequence, sample, length) in enumerate(rows):
            if index < len(decoded):
                sequence.tokens.append(decoded[index])
                continue
            row = outcome.entry_rows[index - len(decoded)]
            assert row.failure is None
            if row.logits is not None:
                sequence.logits[length] = row.logits
            if sample:
                assert row.token is not None
                sequence.tokens.append(row.token)
        return outcome

    def retire(self, sequence: Sequence) -> None:
        """Frees everything of a sequence with the next plan."""
        self._release(sequence)
        self.plan.retired.append(sequence.handle)

    def _register(self, sequence: Sequence, length: int) -> None:
        if not sequence.registered:
            sequence.registered = True
            self.plan.registrations.append(
                Registration(sequence.handle, sequence.prompt, GREEDY, 0)
            )
        first = sequence.table_sent
        for group, table in enumerate(sequence.tables):
            if self.leave:
                self._leave_window(sequence, group)
            while len(table) * self.block_size < length:
                table.append(self._allocate(group))
            if first < len(table):
                self.plan.table_updates.append(
                    TableUpdate(sequence.handle, group, first, table[first:], len(table))
                )
        sequence.table_sent = len(sequence.tables[0])

    def _leave_window(self, sequence: Sequence, group: int) -> None:
        """Makes holes of the blocks that no row from `position` on sees; they are free at once."""
        window, table = self.groups[group].window, sequence.tables[group]
        if not window:
            return
        count = max(0, sequence.position + 1 - window) // self.block_size
        first = table[:count].count(0)
        if first < count:
            for block in table[first:count]:
                self._let_go(group, block)
            table[first:count] = [0] * (count - first)
            self.plan.table_updates.append(
                TableUpdate(sequence.handle, group, first, [0] * (count - first), len(table))
            )
            self.seen["left"] += count - first

    def _allocate(self, group: int) -> int:
        block = self.free[group].pop()
        self.owners[group, block] = 1
        used = self.groups[group].block_count - 1 - len(self.free[group])
        self.used_max[group] = max(self.used_max[group], used)
        return block

    def _release(self, sequence: Sequence) -> None:
        for group, table in enumerate(sequence.tables):
            for block in filter(None, table):
                self._let_go(group, block)
        sequence.tables = [[] for _ in self.groups]

    def _let_go(self, group: int, block: int) -> None:
        self.owners[group, block] -= 1
        if not self.owners[group, block]:
            free = self.free[group]
            free.insert(self.random.randrange(len(free) + 1), block)
            self.seen["recycled"] += 1


class Oracle:
    """mlx-lm itself with its own cache; test_seam shows that the installed seam changes none of its
    bits.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype = mx.float32) -> None:
        self.model, _ = import_mlx_lm_loader().load_model(folder)
        self.model.set_dtype(dtype)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The prompt and `count` tokens after it."""
        cache = make_prompt_cache(self.model)
        tokens = list(prompt)
        logits = self.model(mx.array([tokens]), cache=cache)[0, -1]
        for _ in range(count):
            tokens.append(int(logits.argmax()))
            logits = self.model(mx.array([tokens[-1:]]), cache=cache)[0, -1]
        return tokens

    def logits(self, tokens: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """[n, V]: the logits after each token, of one dense run."""
        return np.array(self.model(mx.array([tokens]))[0].astype(mx.float32))


@pytest.fixture(scope="session")
def checkpoint_writer() -> Callable[..., Path]:
    """Saves a random model of a config."""
    return write_checkpoint


@pytest.fixture
def make_scheduler() -> type[Scheduler]:
    """The scheduler's class."""
    return Scheduler


@pytest.fixture
def make_oracle() -> type[Oracle]:
    """The oracle's class."""
    return Oracle
