"""The tests of `refusals.py`, in a process of their own.

An error in a task can leave MLX's count of active tasks one too high when the evaluation was asked
for on the main thread (0.32.4: what is enqueued behind the task raises there, the sign of its end
with it). From two on, an evaluation in any thread may wait forever; so no other test shares their
process. The engine's thread is not the main thread.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 300


def test_what_does_not_fit_is_refused() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "refusals.py"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 40
