"""Folders that tests read from."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project."""
SHARED = Path(os.environ.get("SCST_SHARED_DATA", ROOT.parent / "shared" / "data")).parent
"""Real data and models, where a machine has them; tests that need them are skipped elsewhere."""
