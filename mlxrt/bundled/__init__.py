"""The model that ships with mlxrt: a small Qwen3 that writes Python.

See README.md beside this file for what it is, how it was trained and its licence.
"""

from mlxrt.bundled.location import card, path

__all__ = ["card", "path"]
