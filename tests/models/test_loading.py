"""What is loaded, what is refused, and what a load says of the model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxrt.errors import MlxrtError
from mlxrt.models import ModelError, check_semantics, family_of, read_checkpoint, resolve_folder
from mlxrt.models.loading import load_model


@pytest.fixture
def altered(tmp_path, checkpoint):
    """Returns a copy of a tiny checkpoint with other config fields; None removes one."""

    def alter(name: str, **fields) -> Path:
        source = checkpoint(name)
        config = json.loads((source / "config.json").read_text())
        config.update(fields)
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        return tmp_path

    return alter


def refusal(folder: Path) -> str:
    """Why the checkpoint is refused."""
    found = read_checkpoint(folder)
    with pytest.raises(ModelError) as caught:
        check_semantics(found, family_of(found), accept_dropped=False)
    return str(caught.value)


def test_facts(checkpoint, start_engine):
    running = start_engine(checkpoint("llama"))
    facts = running.facts
    assert facts.model_type == "llama"
    assert facts.vocabulary_size == 288
    assert facts.max_model_length == 512
    assert facts.end_token_ids == (3, 5)
    assert facts.kv_data_type == "float32"
    assert len(facts.fingerprint) == 64
    group = facts.groups[0]
    assert group.layer_indices == (0, 1)
    assert group.block_bytes == 2 * 2 * 4 * 1 * 32 * 4
    fractions = [fraction for fraction, _ in running.heard.progress]
    assert fractions == sorted(fractions)
    assert running.description.attention_path == "native"
    assert running.description.device.startswith("cpu")


def test_the_models_own_length_wins(checkpoint, start_engine):
    running = start_engine(checkpoint("qwen3"), max_model_length=5000)
    assert running.facts.max_model_length == 1024


def test_dtypes(checkpoint, start_engine):
    for dtype in ("float16", "bfloat16"):
        running = start_engine(checkpoint("qwen3", 4), dtype=dtype)
        assert running.facts.kv_data_type == dtype


def test_quantised_weights_stay_packed(checkpoint):
    model = load_model(read_checkpoint(checkpoint("qwen3", 4)), mx.float32)
    projection = model.layers[0].self_attn.q_proj
    assert projection.weight.dtype == mx.uint32
    assert projection.scales.dtype == mx.float32


def test_planned_weight_bytes_are_the_loaded_ones(checkpoint):
    from mlx.utils import tree_flatten

    for bits in (None, 4):
        found = read_checkpoint(checkpoint("qwen3", bits))
        for dtype in (mx.float32, mx.bfloat16):
            model = load_model(found, dtype)
            loaded = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
            assert found.weight_bytes(dtype.size) == loaded


def test_the_limit_of_open_files_is_kept():
    script = (
        "import resource\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "from mlxrt.models.loading import import_mlx_lm_loader\n"
        "import_mlx_lm_loader()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == before\n"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_importing_the_engines_config_imports_no_mlx():
    script = (
        "import sys\n"
        "import mlxrt.engine, mlxrt.engine.mlx_engine, mlxrt.engine.engine_config, mlxrt.models\n"
        "assert not any(name.partition('.')[0] in ('mlx', 'mlx_lm') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"sliding_window": 16}, "sliding_window"),
        ("llama", {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}}, "rope_parameters"),
        ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "original_max_position_embeddings",
        ),
    ],
)
def test_a_field_that_mlx_lm_drops_is_refused_by_name(name, fields, named, altered):
    folder = altered(name, **fields)
    message = refusal(folder)
    assert named in message
    assert "--accept-mlx-lm-semantics" in message
    found = read_checkpoint(folder)
    accepted = check_semantics(found, family_of(found), accept_dropped=True)
    assert any(named in field for field in accepted)


def test_what_cannot_be_served_is_refused_whatever_is_accepted(altered):
    fields = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    found = read_checkpoint(altered("llama", **fields))
    with pytest.raises(ModelError, match="dynamic"):
        check_semantics(found, family_of(found), accept_dropped=True)


def test_unlisted_families_are_refused_by_name(altered, start_engine):
    with pytest.raises(MlxrtError, match=r"gemma2.*gemma3_text.*llama"):
        start_engine(altered("qwen3", model_type="gemma2"))


def test_code_of_a_checkpoint_is_never_run(altered, start_engine):
    folder = altered("qwen3", model_file="evil.py")
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(MlxrtError, match="custom module"):
        start_engine(folder)


def test_what_does_not_fit_is_refused_with_the_numbers(checkpoint, start_engine):
    with pytest.raises(MlxrtError, match=r"(?s)KV pool.*limit.*num_blocks"):
        start_engine(checkpoint("qwen3"), num_blocks=1 << 24)


def test_folders(tmp_path):
    assert resolve_folder(str(tmp_path)) == tmp_path
    for name in ("/no/such/folder", "./nothing", "nothing"):
        with pytest.raises(ModelError, match="no such folder"):
            resolve_folder(name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        read_checkpoint(tmp_path)


def test_the_fingerprint_follows_config_and_weights(altered):
    first = read_checkpoint(altered("qwen3")).fingerprint
    assert read_checkpoint(altered("qwen3")).fingerprint == first
    assert read_checkpoint(altered("qwen3", rope_theta=5000.0)).fingerprint != first
    assert read_checkpoint(altered("llama")).fingerprint != first


def test_a_process_with_a_closed_engine_ends_cleanly(checkpoint):
    script = (
        "import sys, threading\n"
        "from mlxrt.engine.engine_config import EngineConfig\n"
        "from mlxrt.engine.mlx_engine import MlxEngine\n"
        "ready = threading.Event()\n"
        "class Listener:\n"
        "    def on_progress(self, fraction, activity): pass\n"
        "    def on_ready(self, facts, description): ready.set()\n"
        "    def on_lost(self, error): print(error)\n"
        "engine = MlxEngine(EngineConfig(model=sys.argv[1], num_blocks=64))\n"
        "engine.start(Listener())\n"
        "assert ready.wait(60)\n"
        "engine.close()\n"
        "engine.close()\n"
    )
    folder = str(checkpoint("qwen3"))
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script, folder], check=True, timeout=60)
