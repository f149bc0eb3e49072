"""Why a model can't be served."""

from __future__ import annotations


class ModelError(Exception):
    """The model can't be loaded or served; the message says what is at fault and, where there is
    one, the way out.
    """
