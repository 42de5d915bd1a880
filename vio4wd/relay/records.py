"""The records of lcores, lanes and rings as compiled code gets at them: in place, by their addresses."""

from __future__ import annotations

from typing import Any

import numba

from vio4wd.relay.direct.ring_record import RING
from vio4wd.relay.lanes import LANE_PADDED
from vio4wd.relay.lcore_record import LCORE
from vio4wd.relay.native import record_at

core_at: Any = record_at(numba.from_dtype(LCORE))
lane_at: Any = record_at(numba.from_dtype(LANE_PADDED))
ring_at: Any = record_at(numba.from_dtype(RING))
