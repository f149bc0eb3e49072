"""Coverage-guided fuzzing of one entry point by atheris (the extra `fuzz`).

`python tests/fuzz/coverage_guided.py Step -runs=100000` begins from the committed corpus; whatever
follows the rpc's name is libFuzzer's. New inputs go to a folder that is named last, if one is. The
checks are those of `fuzzer.fuzz`: answered or refused by reason, a refusal changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))  # wherever PYTHONSAFEPATH is set
INSTRUMENTED = ["mlxrt.core", "mlxrt.server", "mlxrt.errors"]

with atheris.instrument_imports(include=INSTRUMENTED):
    import fuzzer

    from mlxrt.testing.simulation import silence_logs


class Target:
    """One input at a time, on a scene that is replaced as `fuzzer.fuzz` does."""

    def __init__(self, rpc: str) -> None:
        self._rpc = rpc
        self._inputs = self._age = 0
        self._renew()

    def __call__(self, data: bytes) -> None:
        self._inputs += 1
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
        self._scene, self._age = fuzzer.Scene(), 0
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
