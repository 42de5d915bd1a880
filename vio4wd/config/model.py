"""The configuration as the daemon sees it: one frozen dataclass and the small types that its fields have."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vio4wd.devices import Attachment, PciAddress
from vio4wd.relay.interface import RelayCpus

PID_FILE_NAME = "virtio-forwarder.pid"
DEFAULT_CORE_SCHED_EP = "ipc:///var/run/virtio-forwarder/core_sched"


class PortControl(enum.Enum):
    """The one source of port control requests beside static VFs."""

    ZMQ = "zmq"
    COMMAND_FILE = "command file"
    OVSDB = "ovsdb"
    NONE = "none"


class RingEngine(enum.Enum):
    """What works the guests' rings: our compiled loop, rte_vhost, or the first with the second to fall back on."""

    AUTO = "auto"
    DIRECT = "direct"
    LIBRARY = "library"


@dataclass(frozen=True)
class StaticVf:
    """A VF, virtual device or bond that is put on a relay when the daemon starts."""

    relay: int
    attachment: Attachment


@dataclass(frozen=True)
class Account:
    """A user or group as it was written and its number; empty and None mean the daemon's own."""

    name: str = ""
    id: int | None = None


@dataclass(frozen=True)
class VfioBinding:
    """What to bind to vfio-pci: a PCI function, or VFs of a netdev (``vf_count`` of them, None for all)."""

    target: PciAddress | str
    vf_count: int | None = None

    def __str__(self) -> str:
        return str(self.target) if self.vf_count is None else f"{self.target}:{self.vf_count}"


@dataclass(frozen=True)
class Config:
    """The effective configuration: defaults, then the file, then the command line.

    CPU numbers are Linux's. ``warnings`` is what the operator should hear about; it has no part in comparisons.
    """

    worker_cpus: tuple[int, ...] = (1, 2)
    master_cpu: int = 0
    cpu_pins: Mapping[int, RelayCpus] = field(default_factory=dict, hash=False)
    same_numa: bool = False
    idle_sleep_max_us: int = 0
    ring_engine: RingEngine = RingEngine.AUTO

    log_level: int = 6
    pid_path: Path = Path("/var/run")
    huge_dir: Path = Path("/mnt/huge")

    socket_dir: Path = Path("/tmp/virtio-forwarder")
    socket_pattern: str = "virtio-forwarder%u.sock"
    socket_owner_account: Account = Account()
    socket_group_account: Account = Account()
    vhost_client: bool = False
    dynamic_sockets: bool = False

    static_vfs: tuple[StaticVf, ...] = ()
    bind_vfio_pci: tuple[VfioBinding, ...] = ()
    vfio_vf_token: str | None = None

    ipc_port_control: bool = False
    command_file: Path = Path("/run/virtio-forwarder/vio_cmd")
    ovsdb_socket: Path | None = Path("/usr/local/var/run/openvswitch/db.sock")

    zmq_config_ep: str | None = None
    zmq_port_control_ep: str | None = None
    zmq_stats_ep: str | None = None
    zmq_core_sched_ep: str | None = None
    zmq_group_account: Account = Account()
    zmq_curve_server_key: Path | None = None
    zmq_curve_client_keys: Path | None = None

    jumbo: bool = False
    mergeable_rx: bool = False
    tso: bool = False
    zero_copy: bool = False

    core_sched_enabled: bool = False
    scheduler_sensitivity: float = 0.25
    scheduler_poll_interval_s: float = 5.0
    scheduler_log_level: int = 6
    scheduler_global_numa: bool = False

    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def port_control(self) -> PortControl:
        """The one in force: ZeroMQ where it has an endpoint, else the command file where it is on, else OVSDB."""
        if self.zmq_port_control_ep is not None:
            return PortControl.ZMQ
        if self.ipc_port_control:
            return PortControl.COMMAND_FILE
        return PortControl.NONE if self.ovsdb_socket is None else PortControl.OVSDB

    @property
    def core_sched_endpoint(self) -> str | None:
        """Where the core scheduling service listens: None unless it is enabled, then its endpoint or the usual one."""
        return (self.zmq_core_sched_ep or DEFAULT_CORE_SCHED_EP) if self.core_sched_enabled else None

    @property
    def socket_owner(self) -> int | None:
        """The uid of the vhost-user sockets, None for the daemon's own."""
        return self.socket_owner_account.id

    @property
    def socket_group(self) -> int | None:
        """The gid of the vhost-user sockets, None for the daemon's own."""
        return self.socket_group_account.id

    @property
    def zmq_group(self) -> int | None:
        """The gid that may use the ZeroMQ sockets, None for the daemon's own."""
        return self.zmq_group_account.id

    @property
    def pid_file(self) -> Path:
        """The PID file: ``pid_path`` where that ends in ``.pid``, else a file in that directory."""
        return self.pid_path if self.pid_path.suffix == ".pid" else self.pid_path / PID_FILE_NAME

    def socket_path(self, relay: int) -> Path:
        """The vhost-user socket of a relay (not with dynamic sockets, whose paths come with each request)."""
        return self.socket_dir / self.socket_pattern.replace("%u", str(relay))
