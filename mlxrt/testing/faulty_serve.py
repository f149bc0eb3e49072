"""`python -m mlxrt.testing.faulty_serve --fault POINT:FAULT[:HIT[:MS]] serve …`: `mlxrt serve` that
meets faults. The command `mlxrt` has no way to this."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

from mlxrt.server import app
from mlxrt.testing.fault_points import instrument
from mlxrt.testing.faults import Faults, FaultSpec


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line behind the faults."""
    parser = argparse.ArgumentParser(prog="python -m mlxrt.testing.faulty_serve")
    parser.add_argument("--fault", type=FaultSpec.parse, action="append", default=[])
    options, rest = parser.parse_known_args(arguments)
    faults = Faults(*options.fault)
    run_server = app.run_server

    def run_faulty(settings: Any, engine: Any, **others: Any) -> Any:
        prepare = functools.partial(instrument, engine=engine, faults=faults)
        return run_server(settings, engine, prepare=prepare, **others)

    app.run_server = run_faulty
    from mlxrt.cli import main as command_line

    sys.argv = ["mlxrt", *rest]
    command_line()


if __name__ == "__main__":
    main()
