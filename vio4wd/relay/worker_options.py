"""What a worker process is told when it starts, as one JSON argument."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from vio4wd.errors import StartupError
from vio4wd.relay.lanes import TABLE_LAYOUT


@dataclass(frozen=True)
class WorkerOptions:
    """Start options of a worker.

    ``worker_cpus`` poll, ``main_cpu`` does the rest. ``huge_dir`` empty: hugepages without a mount point. ``log_level``
    is Python's. ``disabled_features`` is a mask of virtio features that guests are not offered. ``table_layout`` is
    what the supervisor means by its lane table.
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
    table_layout: str = TABLE_LAYOUT

    def encode(self) -> str:
        """As a command line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> WorkerOptions:
        """Read ``encode``'s output.

        Raises:
            StartupError: it is of another version, whose supervisor has the lane table in another layout.
        """
        fields = json.loads(text)
        if fields.get("table_layout") != TABLE_LAYOUT or fields.keys() != cls.__dataclass_fields__.keys():
            raise StartupError("the files of virtio-forwarder were replaced while it ran: restart the daemon")
        fields["worker_cpus"] = tuple(fields["worker_cpus"])
        return cls(**fields)
