"""`python -m mlxrt.testing.soak`: prints the account; 1 where a promise was not kept."""

from __future__ import annotations

import argparse
import json
import sys

from mlxrt.testing.soak.run import SoakPlan, soak


def main() -> int:
    """Runs one soak."""
    parser = argparse.ArgumentParser(prog="python -m mlxrt.testing.soak")
    parser.add_argument("--model", default="fake", help="fake, bundled or a folder")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--fault-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = soak(
        SoakPlan(
            options.model, options.seconds, options.clients, options.fault_rate, options.seed
        )
    )
    print(json.dumps(report.as_json(), indent=1))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
