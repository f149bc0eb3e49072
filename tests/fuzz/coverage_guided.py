"""Coverage-guided fuzzing of one entry point by atheris (the extra `fuzz`).

`python tests/fuzz/coverage_guided.py Step -runs=100000` begins from the committed corpus; whatever
follows the rpc's name is libFuzzer's. New inputs go to a folder that is named last, if one is. The
checks are those of `fuzzer.fuzz`: answered or refused by reason, a refusal changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris
from google.protobuf.message import DecodeError
from mlxrt_client.v1 import execution_pb2, step_pb2

sys.path.insert(0, str(Path(__file__).parent))  # wherever PYTHONSAFEPATH is set
INSTRUMENTED = ["mlxrt.core", "mlxrt.server", "mlxrt.errors"]

with atheris.instrument_imports(include=INSTRUMENTED):
    import fuzzer

    from mlxrt.testing.simulation import silence_logs


TABLES_END = 5
"""The blocks of the scene's tables are 1 to 4."""


def copies_over_a_table(rpc: str, data: bytes) -> bool:
    """Whether a step copies a block over one that its own sequence has computed in.

    It may, and reads then what it copied; the witness, which goes by tokens alone, can't follow.
    """
    if rpc not in ("Step", "Execute"):
        return False
    kind = step_pb2.StepRequest if rpc == "Step" else execution_pb2.ExecuteRequest
    try:
        message = kind.FromString(data)
    except DecodeError:
        return False
    step = message if rpc == "Step" else message.step
    return any(copy.destination_block_id < TABLES_END for copy in step.block_copies)


class Target:
    """One input at a time, on a scene that is replaced as `fuzzer.fuzz` does."""

    def __init__(self, rpc: str) -> None:
        self._rpc = rpc
        self._inputs = self._age = 0
        self._renew()

    def __call__(self, data: bytes) -> None:
        self._inputs += 1
        if copies_over_a_table(self._rpc, data):
            return
        core = self._scene.server.core
        if self._scene.send(self._rpc, data) == "accepted":
            self._age += 1
            if self._age >= 8 or self._rpc in fuzzer._ENDING:
                core.check_integrity()
                self._renew()
            self._before = self._scene.server.core.digest()
        elif self._inputs % fuzzer.LOOK_EVERY == 0:
            assert core.digest() == self._before, data.hex()

    def _renew(self) -> None:
        self._scene, self._age = fuzzer.Scene(self._rpc), 0
        self._before = self._scene.server.core.digest()


def main() -> None:
    """Hands the target to libFuzzer, which ends the process."""
    rpcs = sorted(path.name for path in fuzzer.CORPUS.iterdir())
    if len(sys.argv) < 2 or sys.argv[1] not in rpcs:
        sys.exit(f"usage: {Path(__file__).name} {'|'.join(rpcs)} [option of libFuzzer…] [FOLDER]")
    rpc = sys.argv.pop(1)
    silence_logs()
    # libFuzzer writes to the first folder; the committed corpus is only read.
    folders = [each for each in sys.argv[1:] if not each.startswith("-")]
    options = [each for each in sys.argv[1:] if each.startswith("-")]
    corpus = [*folders, str(fuzzer.CORPUS / rpc)]
    if not folders:
        seeds = sorted(map(str, (fuzzer.CORPUS / rpc).iterdir()))
        options.append(f"-seed_inputs={','.join(seeds)}")
        corpus = []
    atheris.Setup([sys.argv[0], *options, *corpus], Target(rpc))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
