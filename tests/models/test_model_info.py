"""GetModelInfo and GetServerInfo: every field, of models with and without a window."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from google.protobuf.json_format import MessageToDict
from mlxrt_client import Client
from mlxrt_client.v1 import model_pb2
from tiny_families import FAMILY_CONFIGS

from mlxrt.config import LimitSettings
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.server.model_service import FEATURES
from mlxrt.testing.server_thread import ServerThread
from mlxrt.versions import own_version

BLOCK = 4
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Expected:
    """What is known of a family's tiny checkpoint without asking the code under test.

    Attributes:
        heads: KV heads and their width.
        groups: kind, layers, window and blocks, by number.
    """

    heads: tuple[int, int]
    groups: tuple[tuple[str, list[int], int, int], ...]


FULL, WINDOW = "GROUP_KIND_FULL", "GROUP_KIND_WINDOW"
FAMILIES = {
    "qwen3": Expected((2, 24), ((FULL, [0, 1], 0, 41),)),
    # One full layer after each two with a window.
    "gemma3_text": Expected((2, 24), ((FULL, [2], 0, 41), (WINDOW, [0, 1, 3], 16, 23))),
    "gpt_oss": Expected((2, 16), ((FULL, [1], 0, 41), (WINDOW, [0], 16, 23))),
}


def ask(folder: Path) -> tuple[Any, Any]:
    """GetServerInfo and GetModelInfo of a server over the checkpoint, through the client."""
    engine = MlxEngine(
        EngineConfig(
            model=str(folder), attention="gather", block_size=BLOCK, num_blocks=41,
            window_num_blocks=23, max_step_rows=64, max_step_sequences=16, max_model_length=512,
        )
    )  # fmt: skip
    limits = {"max_model_length": 512, "max_sessions": 3}
    with ServerThread(engine, limits=limits) as server, Client(server.address) as client:
        return client.server_info(), client.model_info()


def fingerprint_of(folder: Path) -> str:
    """As model.proto defines it."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    size = (folder / "model.safetensors").stat().st_size
    digest.update(f"\nmodel.safetensors {size}".encode())
    return digest.hexdigest()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_the_models(name: str, tmp_path: Path, checkpoint_writer: Any) -> None:
    expected = FAMILIES[name]
    ends = {"bos_token_id": 2, "eos_token_id": [5, 3]}
    folder = checkpoint_writer(tmp_path, {**FAMILY_CONFIGS[name], **ends})
    _, info = ask(folder)
    layer_bytes = 2 * BLOCK * expected.heads[0] * expected.heads[1] * FLOAT_BYTES
    groups = [
        {
            "group": number, "kind": kind, "layer_indices": layers, "window": window,
            "block_count": blocks, "block_bytes": str(layer_bytes * len(layers)),
        }
        for number, (kind, layers, window, blocks) in enumerate(expected.groups)
    ]  # fmt: skip
    assert everything(info) == {
        "model_name": str(folder), "model_type": name,
        "vocabulary_size": FAMILY_CONFIGS[name]["vocab_size"], "max_model_length": 512,
        "kv_data_type": "DATA_TYPE_FLOAT32", "block_size": BLOCK, "groups": groups,
        "end_token_ids": [3, 5], "fingerprint": fingerprint_of(folder), "begin_token_ids": [2],
    }  # fmt: skip
    assert sum(len(group.layer_indices) for group in info.groups) == (
        FAMILY_CONFIGS[name]["num_hidden_layers"]
    )


def test_every_field_of_the_servers(tmp_path: Path, checkpoint_writer: Any) -> None:
    info, _ = ask(checkpoint_writer(tmp_path, FAMILY_CONFIGS["qwen3"]))
    found = everything(info)
    assert found.pop("device").startswith("cpu") and found.pop("blas")
    assert len(found.pop("instance_id")) == 32
    limits = {**LimitSettings(max_model_length=512, max_sessions=3).model_dump()}
    assert found.pop("limits") == {**limits, "stored_replies": limits["max_inflight_steps"] + 2}
    assert found == {
        "version": own_version(), "mlx_version": mx.__version__, "attention_path": "gather",
        "state": "SERVER_STATE_SERVING", "features": list(FEATURES),
    }  # fmt: skip


def everything(message: Any) -> dict[str, Any]:
    """The message as a dict in which each field of its type stands, set or not."""
    found = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert set(found) == {field.name for field in message.DESCRIPTOR.fields}
    return found


@pytest.mark.parametrize(
    ("config", "generation", "begin", "end"),
    [
        ({}, {}, [], []),
        ({"bos_token_id": 1, "eos_token_id": 2}, {}, [1], [2]),
        ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [2, 9]}, [1], [2, 9]),
        ({}, {"bos_token_id": 4, "eos_token_id": 2}, [4], [2]),
        ({"bos_token_id": None, "eos_token_id": None}, {"bos_token_id": None}, [], []),
    ],
)
def test_begin_and_end_tokens(
    tmp_path: Path, checkpoint_writer: Any, config: dict[str, Any], generation: dict[str, Any],
    begin: list[int], end: list[int],
) -> None:  # fmt: skip
    plain = {key: value for key, value in FAMILY_CONFIGS["qwen3"].items() if "token_id" not in key}
    folder = checkpoint_writer(tmp_path, {**plain, **config})
    (folder / "generation_config.json").write_text(json.dumps(generation))
    _, info = ask(folder)
    assert (list(info.begin_token_ids), list(info.end_token_ids)) == (begin, end)


def test_the_limits_of_the_message_are_those_of_the_settings() -> None:
    fields = {field.name for field in model_pb2.Limits.DESCRIPTOR.fields}
    assert fields == {*LimitSettings.model_fields, "stored_replies"}
