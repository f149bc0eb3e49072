"""What mlx-lm drops of a family's config is refused by name; what is missing is an error that names
it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_families import FAMILY_CONFIGS
from typer.testing import CliRunner

from mlxrt.cli import app
from mlxrt.models import FAMILIES, ModelError, check_semantics, family_of
from mlxrt.models.checkpoint import Checkpoint, flat_config
from mlxrt.models.semantics import fields_of

DROPPED = [
    ("bailing_moe", {"norm_softmax": True}, "norm_softmax"),
    ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
    ("deepseek", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type: yarn"),
    ("dots1", {"topk_method": "greedy"}, "topk_method"),
    ("ernie4_5_moe", {"moe_use_aux_free": True}, "moe_use_aux_free"),
    ("exaone_moe", {"scoring_func": "softmax"}, "scoring_func"),
    ("gemma", {"hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("gemma3_text", {"attention_bias": True}, "attention_bias"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ("glm4_moe", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("glm4", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("gpt2", {"n_inner": 100}, "n_inner"),
    ("gpt_oss", {"swiglu_limit": 9.0}, "swiglu_limit"),
    ("gpt_oss", {"rope_scaling": {"rope_type": "yarn", "truncate": False}}, "truncate"),
    (
        "mellum",
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e4}}},
        "rope_parameters.full_attention: linear",
    ),
    ("mimo_v2_flash", {"scoring_func": "softmax"}, "scoring_func"),
    ("minicpm", {"sparse_config": {"topk": 64}}, "sparse_config"),
    ("minimax", {"attn_type_list": [0, 1]}, "attn_type_list"),
    ("mistral3 (mistral)", {"sliding_window": 4096}, "sliding_window"),
    ("mistral", {"sliding_window": 4096}, "sliding_window"),
    ("mixtral", {"sliding_window": 4096}, "sliding_window"),
    ("nanochat", {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
    ("openelm", {"ffn_with_glu": False}, "ffn_with_glu"),
    ("qwen", {"use_dynamic_ntk": True}, "use_dynamic_ntk"),
    ("phi3", {"sliding_window": 2047}, "sliding_window"),
    ("phi3", {"rope_scaling": {"type": "yarn", "long_factor": [1]}}, "rope_scaling.type"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
    ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("qwen3_moe", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ("starcoder2", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
    ("starcoder2", {"sliding_window": 4096}, "sliding_window"),
]


def _checkpoint(name: str, **fields) -> Checkpoint:
    config = {**flat_config(FAMILY_CONFIGS[name]), **fields}
    config = {key: value for key, value in config.items() if value != "absent"}
    return Checkpoint(Path("nowhere"), config, {}, "")


def _check(name: str, *, accept: bool = False, **fields) -> list[str]:
    found = _checkpoint(name, **fields)
    return check_semantics(found, FAMILIES[name], accept_dropped=accept)


@pytest.mark.parametrize("name", sorted(FAMILY_CONFIGS))
def test_the_tested_config_drops_nothing(name):
    assert _check(name) == []


@pytest.mark.parametrize(("name", "fields", "named"), DROPPED)
def test_a_field_that_mlx_lm_drops_is_refused_by_name(name, fields, named):
    with pytest.raises(ModelError, match=named):
        _check(name, **fields)
    assert any(named in found for found in _check(name, accept=True, **fields))


@pytest.mark.parametrize(
    "name",
    sorted(n for n, c in FAMILY_CONFIGS.items() if "rope_parameters" not in flat_config(c)),
)
def test_rope_parameters_that_mlx_lm_does_not_read_are_refused_by_name(name):
    with pytest.raises(ModelError, match=r"rope_parameters\.rope_theta"):
        _check(name, rope_parameters={"rope_theta": 123.0, "rope_type": "default"})


@pytest.mark.parametrize("name", sorted(name for name in FAMILY_CONFIGS if FAMILIES[name].required))
def test_a_missing_field_is_named(name):
    for field in FAMILIES[name].required:
        assert field in fields_of(FAMILIES[name])
        with pytest.raises(ModelError, match=field):
            _check(name, accept=True, **{field: "absent"})


@pytest.mark.parametrize(
    ("model_type", "text_type"), [("mistral3", "mistral4"), ("mistral3", ""), ("gemma3", "gemma2")]
)
def test_a_wrapper_around_another_text_model_is_refused_by_name(model_type, text_type):
    config = flat_config({"model_type": model_type, "text_config": {"model_type": text_type}})
    with pytest.raises(ModelError, match=f"'{model_type}'.*{text_type}"):
        family_of(Checkpoint(Path("nowhere"), config, {}, ""))


def test_a_text_models_fields_win_but_for_names_and_special_tokens():
    text = {"model_type": "qwen3", "hidden_size": 8, "eos_token_id": 1, "bos_token_id": 5}
    config = {"model_type": "qwen3_vl", "hidden_size": 4, "eos_token_id": [2, 3]}
    found = Checkpoint(Path("nowhere"), flat_config({**config, "text_config": text}), {}, "")
    assert (found.model_type, found.text_model_type) == ("qwen3_vl", "qwen3")
    assert found.config["hidden_size"] == 8
    assert (found.end_token_ids, found.begin_token_ids) == ((2, 3), (5,))


@pytest.mark.parametrize(
    ("name", "length"), [("gpt2", 1024), ("gptj", 1024), ("openelm", 1024), ("qwen", 1024)]
)
def test_the_model_length_has_many_names(name, length):
    assert _checkpoint(name).max_model_length == length


def test_a_rope_type_that_one_module_turns_into_fixed_frequencies():
    dynamic = {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}
    assert _check("hunyuan_v1_dense", rope_scaling=dynamic) == []
    with pytest.raises(ModelError, match="rope type dynamic"):
        _check("qwen2", accept=True, rope_scaling=dynamic)


def test_a_head_width_that_the_module_can_not_have_is_named():
    with pytest.raises(ModelError, match="head_dim: 24"):
        _check("qwen2", head_dim=24)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gemma3_text", {"layer_types": ["full_attention"] * 4}),
        ("cohere2", {"layer_types": ["sliding_attention"] * 4}),
        ("exaone4", {"layer_types": ["full_attention"] * 4}),
        ("olmo3", {"sliding_window": "absent"}),
    ],
)
def test_windows_that_the_config_does_not_give_are_an_error(name, fields):
    family, config = FAMILIES[name], _checkpoint(name).config
    windows = list(family.windows(config, 4))
    family.check_windows(config, windows)
    with pytest.raises(ModelError, match="windows by layer"):
        family.check_windows(config, [*windows[:-1], windows[-1] + 8])
    with pytest.raises(ModelError, match="window"):
        family.check_windows(_checkpoint(name, **fields).config, windows)


def test_the_readme_has_the_table_that_the_command_prints():
    printed = CliRunner().invoke(app, ["models", "--markdown"])
    assert printed.exit_code == 0
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    written = readme.split("<!-- families -->\n")[1].split("<!-- /families -->")[0]
    assert written == printed.stdout
    assert all(f"| {name} | {family.module_name} |" in written for name, family in FAMILIES.items())
    plain = CliRunner().invoke(app, ["models"]).stdout
    assert all(name in plain for name in FAMILIES)
