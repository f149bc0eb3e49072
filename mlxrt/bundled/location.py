"""Where the bundled model and its card lie. Imports no MLX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "qwen3-python-4m"
"""The model's name and the name of its folder."""

CARD_FILE = "model_card.json"
"""The card's file name in the model folder."""


def path() -> Path:
    """Returns the model folder, laid out as Hugging Face does; `mlx_lm.load` takes it as it is."""
    return Path(__file__).resolve().parent / NAME


def card() -> dict[str, Any]:
    """Returns the model card: corpus, hyperparameters, losses, file hashes, licence.

    Raises:
        FileNotFoundError: the package was installed without its model.
    """
    loaded: dict[str, Any] = json.loads((path() / CARD_FILE).read_text(encoding="utf-8"))
    return loaded
