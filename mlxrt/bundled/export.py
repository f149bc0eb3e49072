"""Assembles the model folder and writes its card."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer

from mlxrt.bundled import evaluation
from mlxrt.bundled.location import CARD_FILE, NAME
from mlxrt.bundled.tokenizer_training import END_OF_TEXT, token_id

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files of the model folder that the card pins by hash."""

TOKENS_PER_PROMPT = 128
"""Length at most of the greedy completions that the card holds and takes its margins from."""

LICENCE = {
    "weights": "Apache-2.0, as mlxrt itself",
    "training_data": "PSF-2.0",
    "attribution": (
        "Trained on the source of the Python standard library, copyright 2001 Python Software "
        "Foundation, all rights reserved, used under the PSF License Agreement, version 2. "
        "The Python Software Foundation neither made nor endorses this model."
    ),
}


def export(work: Path, folder: Path, fit: dict[str, Any], corpus: dict[str, Any]) -> dict[str, Any]:
    """Copies the model's files from `work` to `folder`, measures margins, writes the model's card.

    Returns the card.

    Raises:
        FileNotFoundError: `work` lacks one of the files, so a stage before has not run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(work / name, folder / name)
    card: dict[str, Any] = {"name": NAME, "licence": LICENCE}
    card |= _measured(folder, fit)
    card["corpus"] = corpus
    card["training"] = fit
    card["files"] = {name: _pin(folder / name) for name in MODEL_FILES}
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")
    return card


def completions(model: Any, tokenizer: Tokenizer, limit: int) -> list[evaluation.Greedy]:
    """Returns the greedy completions of `evaluation.PROMPTS`, at most `limit` tokens each."""
    end = token_id(tokenizer, END_OF_TEXT)
    return [
        evaluation.greedy(model, tokenizer.encode(prompt).ids, limit, end)
        for prompt in evaluation.PROMPTS
    ]


def _measured(folder: Path, fit: dict[str, Any]) -> dict[str, Any]:
    """Completes the prompts with the exported weights: float32 arithmetic, MLX's default device."""
    from mlx_lm import load

    model, _ = load(str(folder))
    parameter_count = sum(array.size for array in dict(tree_flatten(model.parameters())).values())
    model.set_dtype(mx.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    greedy = completions(model, tokenizer, TOKENS_PER_PROMPT)
    return {
        "parameters": parameter_count,
        "dtype": "bfloat16",
        "trained_context": fit["hyperparameters"]["length"],
        "train_loss_nats_per_token": fit["train_loss"],
        "validation": fit.pop("validation"),
        "greedy_margins": {
            "arithmetic": "float32 on the stored bfloat16 weights",
            "prompts": len(evaluation.PROMPTS),
            "tokens_per_prompt_max": TOKENS_PER_PROMPT,
            "unit": "logits",
            **evaluation.margin_statistics(greedy),
        },
        "samples": [
            {"prompt": prompt, "completion": tokenizer.decode(completion.token_ids)}
            for prompt, completion in zip(evaluation.PROMPTS, greedy, strict=True)
        ],
    }


def _pin(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
