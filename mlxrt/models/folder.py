"""From the name that a user gives to a folder with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from mlxrt.models.errors import ModelError

BUNDLED = "bundled"
"""Name of the small model in the package."""

_PATTERNS = (
    "*.json",
    "model*.safetensors",
    "*.jsonl",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
)


def resolve_folder(model: str) -> Path:
    """Returns the folder of `model`: a local folder, "bundled", or a Hugging Face hub name, which
    is downloaded once.

    No code of a checkpoint is ever downloaded or run.

    Raises:
        ModelError: there is no such folder, and the hub has no such model or can't be reached.
    """
    if model == BUNDLED:
        from mlxrt.bundled import location

        folder = location.path()
        if not folder.is_dir():
            raise ModelError("this installation lacks the bundled model")
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.count("/") != 1 or model.startswith((".", "~")):
        raise ModelError(f"{model}: no such folder, and not the form of a hub name (owner/name)")
    return _download(model)


def _download(name: str) -> Path:
    """The local copy of a model of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{name}: the hub gives no such model: {error}") from error
