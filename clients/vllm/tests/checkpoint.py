"""Makes a small random checkpoint in the server's environment: `PYTHON checkpoint.py CONFIG OUT`.

CONFIG is a file with the checkpoint's config.json, OUT the folder to make.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlxrt.models import FAMILIES
from mlxrt.models.loading import import_mlx_lm_loader


def main() -> None:
    """See the module."""
    config, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    import_mlx_lm_loader()
    module = importlib.import_module(f"mlx_lm.models.{FAMILIES[config['model_type']].module_name}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict(config))
    # Wider than mlx's default, so that greedy tokens don't fall into a short cycle.
    model.load_weights(
        [
            (name, mx.random.normal(value.shape) * 0.15 + (0 if value.ndim > 1 else value))
            for name, value in tree_flatten(model.parameters())
        ]
    )
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
