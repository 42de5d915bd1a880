"""What a worker process is told when it starts, as one JSON argument."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class WorkerOptions:
    """Start options of a worker.

    ``worker_cpus`` poll, ``main_cpu`` does the rest. ``huge_dir`` empty: hugepages without a mount point. ``log_level``
    is Python's. ``disabled_features`` is a mask of virtio features that guests are not offered.
    """

    name: str
    main_cpu: int
    worker_cpus: tuple[int, ...]
    huge_dir: str
    mtu: int
    log_level: int
    idle_sleep_max_us: int
    disabled_features: int
    ring_engine: str = "auto"
    vfio_vf_token: str = ""

    def encode(self) -> str:
        """As a command line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> WorkerOptions:
        """Read ``encode``'s output."""
        fields = json.loads(text)
        fields["worker_cpus"] = tuple(fields["worker_cpus"])
        return cls(**fields)
