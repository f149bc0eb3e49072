"""Settings that every test runs under."""

from __future__ import annotations

import os

# Subprocesses import the installed package, never the source tree they happen to be started in.
os.environ["PYTHONSAFEPATH"] = "1"
# No test looks for a model on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
