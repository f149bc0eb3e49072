"""The listed families as tiny checkpoints: `families.json` has a config for each, with that
family's own fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAMILY_CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "families.json").read_text()
)
TOLERANCE = {"gather": 0.0, "native": 1e-4}
"""By attention path: of a logit, as a share of the largest."""
