"""Puts the folder of tests on sys.path, so that all tests share its packages (``from frontend import FrontEnd``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
