"""Tests here share the broker's thread and the back end in Python with those of the broker."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "vhostuser"))
