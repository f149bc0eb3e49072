"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc

_THRESHOLDS = (50_000, 20, 100)


def tune_garbage_collector() -> None:
    """Takes what is loaded by now out of the collector's sight and has it look less often.

    A step makes a few hundred objects, none in a cycle; with the defaults a full collection walks
    the whole process's objects every few hundred steps and costs a step tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
