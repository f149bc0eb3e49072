"""`python -m mlxrt.testing.simulation`."""

from __future__ import annotations

import sys

from mlxrt.testing.simulation.command import main

if __name__ == "__main__":
    sys.exit(main())
