"""Tests here share the relays in memory with those of the ZeroMQ services."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "portctl"))
