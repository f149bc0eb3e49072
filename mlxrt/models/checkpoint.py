"""What a checkpoint says of itself, read without loading a weight."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxrt.models.errors import ModelError

_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_HEADER_BYTES_MAX = 100_000_000
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_context_length", "seq_length", "block_size",
)  # fmt: skip
_TOKEN_IDS = ("eos_token_id", "bos_token_id")
TEXT_MODEL_TYPE = "text_config.model_type"
"""Where a flat config has the text model's name."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint: safetensors' name of its type, number of elements, bytes in the
    file.
    """

    dtype: str
    element_count: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder.

    Attributes:
        config: config.json, flat (`flat_config`), with generation_config.json's begin and end
            tokens where it names some.
        tensors: by name, over all weight files.
        fingerprint: SHA-256, hexadecimal, over config.json and the names and sizes of the weight
            files.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    fingerprint: str

    @property
    def model_type(self) -> str:
        """The family's name as config.json has it; empty where it has none."""
        return str(self.config.get("model_type", ""))

    @property
    def text_model_type(self) -> str:
        """The text model's name where the model is one in a wrapper; else empty."""
        return str(self.config.get(TEXT_MODEL_TYPE, ""))

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, ascending."""
        return _token_ids(self.config.get("eos_token_id"))

    @property
    def begin_token_ids(self) -> tuple[int, ...]:
        """Tokens that a text begins with, ascending."""
        return _token_ids(self.config.get("bos_token_id"))

    @property
    def max_model_length(self) -> int | None:
        """Positions that the model was made for; None where it does not say."""
        found = [self.config[name] for name in _LENGTHS if self.config.get(name)]
        return int(found[0]) if found else None

    def weight_bytes(self, float_bytes: int | None) -> int:
        """Bytes of the weights in memory.

        Args:
            float_bytes: width that floating-point tensors are cast to; None keeps them as they are.
        """
        total = 0
        for tensor in self.tensors.values():
            cast = float_bytes is not None and tensor.dtype in _FLOAT_BYTES
            total += (
                tensor.element_count * float_bytes if cast and float_bytes else tensor.file_bytes
            )
        return total


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads config.json and the headers of the weight files.

    Raises:
        ModelError: a file is missing or malformed.
    """
    config_bytes = _read_bytes(folder / "config.json")
    config = flat_config(_parse_object(config_bytes, folder / "config.json"))
    generation_path = folder / "generation_config.json"
    if generation_path.is_file():
        generation = _parse_object(_read_bytes(generation_path), generation_path)
        for field in ("bos_token_id", "eos_token_id"):
            if generation.get(field) is not None:
                config[field] = generation[field]
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no model*.safetensors in it")
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256(config_bytes)
    for path in files:
        digest.update(f"\n{path.name} {path.stat().st_size}".encode())
        tensors.update(_read_header(path))
    return Checkpoint(folder, config, tensors, digest.hexdigest())


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose text model's fields stand at the top, as those of a plain text model do.

    Where both levels have a field, mlx-lm reads the text model's; names and special tokens are the
    wrapper's.
    """
    text = config.get("text_config")
    if not isinstance(text, dict):
        return dict(config)
    named = {name: config[name] for name in ("model_type", *_TOKEN_IDS) if name in config}
    return {**config, **text, **named, TEXT_MODEL_TYPE: text.get("model_type", "")}


def _token_ids(value: Any) -> tuple[int, ...]:
    """Ids as a checkpoint's JSON has them: one, several or null."""
    if value is None:
        return ()
    return tuple(sorted(set(value))) if isinstance(value, list) else (int(value),)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error


def _parse_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def _read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, from the JSON at its head."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER_BYTES_MAX, path.stat().st_size):
            raise ModelError(f"{path}: not a safetensors file")
        header = _parse_object(file.read(length), path)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            tensors[name] = Tensor(str(entry["dtype"]), math.prod(entry["shape"]), end - begin)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: malformed header at {name}") from error
    return tensors
