"""Serves the fake model with faults that `mlxrt serve --fake` does not have.

python faulty.py --address unix:/tmp/s.sock --block-size 4 --num-blocks 33 --nan-prompt-token 13
"""

from __future__ import annotations

import argparse
import sys

from mlxrt.config import load_settings
from mlxrt.server.app import run_server
from mlxrt.testing import FakeEngine, FakeFaults


def main() -> int:
    """Serves until SIGTERM and returns the exit code."""
    parser = argparse.ArgumentParser(description="The fake model with faults.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--num-blocks", type=int, default=64)
    parser.add_argument(
        "--nan-prompt-token", type=int, action="append", default=[],
        help="sequences with this token in their prompt give NaN logits",
    )  # fmt: skip
    parser.add_argument(
        "--fail-forward", type=int, action="append", default=[],
        help="the forward of this step of the server's fails, counted from 1",
    )  # fmt: skip
    parser.add_argument(
        "--fail-sampling", type=int, action="append", default=[],
        help="the sampling of this step fails, which defers it",
    )  # fmt: skip
    options = parser.parse_args()
    engine = FakeEngine(
        block_size=options.block_size,
        num_blocks=options.num_blocks,
        threaded=True,
        faults=FakeFaults(
            fail_tickets=set(options.fail_forward),
            fail_samplings=set(options.fail_sampling),
            nan_prompt_tokens=set(options.nan_prompt_token),
        ),
    )
    settings = load_settings(None, fake=True, address=options.address)
    return int(run_server(settings, engine))


if __name__ == "__main__":
    sys.exit(main())
