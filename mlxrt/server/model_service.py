"""ModelService: facts about the server and its model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import grpc
from mlxrt_client.v1 import model_pb2, tensor_pb2

from mlxrt.core.model import Limits
from mlxrt.engine.base import EngineDescription
from mlxrt.errors import unsupported
from mlxrt.server.handler import parse, serialize, server_stream, unary
from mlxrt.server.lifecycle import Lifecycle
from mlxrt.server.runtime import Runtime
from mlxrt.versions import own_version

NAME = "mlxrt.v1.ModelService"
FEATURES = ("logits", "logprobs", "drafts", "masks", "deferred_sampling", "prompt_logprobs")
CHUNK_BYTES_MAX = 1024 * 1024
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""Files of a checkpoint's folder that make up its tokenizer, as far as they are there."""

_DATA_TYPES = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
}


@runtime_checkable
class HasTokenizer(Protocol):
    """An engine whose model lies in a folder with its tokenizer; the folder is known once the
    engine is ready."""

    tokenizer_folder: Path | None


@dataclass(frozen=True, slots=True)
class ModelView:
    """What is known of the model at the moment.

    Attributes:
        limits: in force; the configured ones before the model is loaded.
        description: how the engine computes; all empty before the model is loaded.
        tokenizer_folder: where the tokenizer's files are; None where there are none.
    """

    limits: Limits
    description: EngineDescription
    tokenizer_folder: Path | None


class ModelService:
    """The rpcs, bytes to bytes.

    Args:
        runtime: answers the runtime, or raises LOADING or DEVICE_LOST.
        view: answers what is known now, at any time.
        instance_id: of this start of the server.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        view: Callable[[], ModelView],
        lifecycle: Lifecycle,
        instance_id: str,
    ) -> None:
        self._runtime = runtime
        self._view = view
        self._lifecycle = lifecycle
        self._instance_id = instance_id

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server serves."""
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "GetServerInfo": unary("GetServerInfo", self.server_info),
                "GetModelInfo": unary("GetModelInfo", self.model_info),
                "GetTokenizer": server_stream("GetTokenizer", self.tokenizer),
                "LoadAdapter": unary("LoadAdapter", _refuse_load_adapter),
                "UnloadAdapter": unary("UnloadAdapter", _refuse_unload_adapter),
            },
        )

    def server_info(self, data: bytes) -> bytes:
        """GetServerInfo; while loading, what is known so far."""
        parse(model_pb2.GetServerInfoRequest, data)
        view = self._view()
        limits, how = view.limits, view.description
        named = {f.name: getattr(limits, f.name) for f in fields(Limits)}
        return serialize(
            model_pb2.GetServerInfoResponse(
                version=own_version(),
                mlx_version=how.mlx_version,
                instance_id=self._instance_id,
                device=how.device,
                attention_path=how.attention_path,
                blas=how.blas,
                state=int(self._lifecycle.state),  # type: ignore[arg-type]
                limits=model_pb2.Limits(**named, stored_replies=limits.stored_replies),
                features=FEATURES,
            )
        )

    def model_info(self, data: bytes) -> bytes:
        """GetModelInfo."""
        parse(model_pb2.GetModelInfoRequest, data)
        runtime = self._runtime()
        facts = runtime.facts
        return serialize(
            model_pb2.GetModelInfoResponse(
                model_name=facts.model_name,
                model_type=facts.model_type,
                vocabulary_size=facts.vocabulary_size,
                max_model_length=runtime.limits.max_model_length,
                kv_data_type=_DATA_TYPES[facts.kv_data_type],
                block_size=facts.block_size,
                groups=[
                    model_pb2.GroupInfo(
                        group=index,
                        kind=model_pb2.GroupKind.Name(group.kind.value),
                        layer_indices=group.layer_indices,
                        window=group.window,
                        block_count=group.block_count,
                        block_bytes=group.block_bytes,
                    )
                    for index, group in enumerate(facts.groups)
                ],
                end_token_ids=facts.end_token_ids,
                fingerprint=facts.fingerprint,
                begin_token_ids=facts.begin_token_ids,
            )
        )

    async def tokenizer(self, data: bytes) -> AsyncIterator[bytes]:
        """GetTokenizer."""
        parse(model_pb2.GetTokenizerRequest, data)
        limits = self._runtime().limits
        folder = self._view().tokenizer_folder
        if folder is None:
            raise unsupported("GetTokenizer")
        chunk_bytes = min(CHUNK_BYTES_MAX, limits.max_message_bytes // 2)
        for name in TOKENIZER_FILES:
            path = folder / name
            if not path.is_file():
                continue
            content = await asyncio.to_thread(path.read_bytes)
            for start in range(0, max(len(content), 1), chunk_bytes):
                piece = model_pb2.GetTokenizerResponse(
                    file_name=name, chunk=content[start : start + chunk_bytes]
                )
                if start + chunk_bytes >= len(content):
                    piece.file_sha256 = hashlib.sha256(content).hexdigest()
                yield piece.SerializeToString()


def _refuse_load_adapter(data: bytes) -> bytes:
    parse(model_pb2.LoadAdapterRequest, data)
    raise unsupported("LoadAdapter")


def _refuse_unload_adapter(data: bytes) -> bytes:
    parse(model_pb2.UnloadAdapterRequest, data)
    raise unsupported("UnloadAdapter")
