"""Which of mlx-lm's families run, how a checkpoint is loaded and what is checked before. Importing
this imports no mlx.
"""

from mlxrt.models.checkpoint import Checkpoint, read_checkpoint
from mlxrt.models.errors import ModelError
from mlxrt.models.family import Family
from mlxrt.models.folder import resolve_folder
from mlxrt.models.lookup import family_of
from mlxrt.models.registry import FAMILIES
from mlxrt.models.semantics import check_semantics

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "ModelError",
    "check_semantics",
    "family_of",
    "read_checkpoint",
    "resolve_folder",
]
