"""The table of all configuration keys. A new key is one entry here and one field of Config."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vio4wd.config import attachments, cpus, kinds
from vio4wd.config.kinds import Kind
from vio4wd.config.model import DEFAULT_CORE_SCHED_EP, Config

_RUN = "ipc:///var/run/virtio-forwarder"


class Section(enum.Enum):
    """Groups of keys, in the order in which documents list them."""

    CPUS = "CPUs"
    DAEMON = "Daemon"
    SOCKETS = "vhost-user sockets"
    VFS = "VFs"
    PORT_CONTROL = "Port control"
    ZMQ = "ZeroMQ services"
    FEATURES = "Features offered to VMs"
    SCHEDULER = "CPU load balancing"


@dataclass(frozen=True)
class Option:
    """The daemon's command line option for a key. ``bare`` is the value of an option that may stand without one."""

    short: str | None
    long: str
    metavar: str = ""
    bare: str | None = None
    repeat: bool = False


@dataclass(frozen=True)
class KeySpec:
    """One key: its field of Config, its kind of value, what it is for.

    ``default_text`` is given where the default depends on the machine. ``example`` is a value worth showing.
    ``reloadable``: a running daemon takes a new value on SIGHUP. ``works``: this version does what the key asks for.
    """

    key: str
    field: str
    kind: Kind
    section: Section
    description: str
    option: Option | None = None
    example: str | None = None
    default_text: str | None = None
    reloadable: bool = False
    works: bool = True

    @property
    def explanation(self) -> str:
        """The description, and whether setting the key is of any use."""
        return self.description if self.works else f"{self.description} Has no effect in this version."

    @property
    def default_words(self) -> tuple[str, ...]:
        """The default as the words of an assignment."""
        if self.default_text is not None:
            return (self.default_text,)
        return self.kind.write(getattr(_DEFAULTS, self.field))

    @property
    def default(self) -> str:
        """The default as people read it."""
        return " ".join(self.default_words)


_DEFAULTS = Config()

_KEYS = (
    KeySpec(
        "VIRTIOFWD_CPU_MASK", "worker_cpus", cpus.CPU_MASK, Section.CPUS,
        "CPUs that relay packets. Each is polled without rest while a VM is connected to a relay on it: "
        "keep other work, and hyperthread siblings, off them. "
        "CPUs of the default that the machine lacks are left out with a warning.",
        Option("-C", "--cpus", "CPUS"), example="0x6",
    ),
    KeySpec(
        "VIRTIOFWD_MASTER_LCORE", "master_cpu", cpus.MASTER_CPU, Section.CPUS,
        "CPU for housekeeping: control, logs, connections. Best none of the worker CPUs.",
        Option("-M", "--master-lcore", "CPU"),
    ),
    KeySpec(
        "VIRTIOFWD_CPU_PINS", "cpu_pins", cpus.CPU_PINS, Section.CPUS,
        "Worker CPUs of single relays. The first CPU carries packets from the VF to the VM, the second those from "
        "the VM to the VF; one CPU does both. Relays without a pin go to the least busy CPU. A leading "
        "--virtio-cpu= is accepted.",
        Option("-c", "--virtio-cpu", "RELAY:CPU[,CPU]", repeat=True), example="(1:1,2 5:2)", reloadable=True,
    ),
    KeySpec(
        "VIRTIOFWD_CPU_NIC_SAME_NUMA", "same_numa", kinds.FLAG, Section.CPUS,
        "Serve a relay only by worker CPUs of its VF's NUMA node.",
        Option("-a", "--same-numa"), works=False,
    ),
    KeySpec(
        "VIRTIOFWD_IDLE_SLEEP_MAX_US", "idle_sleep_max_us", kinds.integer(0, 10000, "microseconds"), Section.CPUS,
        "Longest sleep of a worker CPU whose relays have nothing to do. It saves power and costs latency: 0 never "
        "sleeps.",
    ),
    KeySpec(
        "VIRTIOFWD_RING_ENGINE", "ring_engine", kinds.RING_ENGINE, Section.CPUS,
        "What works the VMs' rings: the forwarder's own loop (direct), DPDK's vhost library (library), or the "
        "first with the second for what it does not know (auto).",
    ),
    KeySpec(
        "VIRTIOFWD_LOG_LEVEL", "log_level", kinds.integer(0, 7), Section.DAEMON,
        "How much to log, as syslog counts: 3 errors, 4 warnings, 6 information, 7 all.",
        Option("-l", "--loglevel", "LEVEL"), reloadable=True,
    ),
    KeySpec(
        "VIRTIOFWD_PID_DIR", "pid_path", kinds.PATH, Section.DAEMON,
        "Directory of the PID file virtio-forwarder.pid. A path that ends in .pid is the file itself.",
        Option("-p", "--pid-path", "PATH"),
    ),
    KeySpec(
        "VIRTIOFWD_HUGETLBFS_MOUNT_POINT", "huge_dir", kinds.PATH, Section.DAEMON,
        "Where hugetlbfs with pages of 2 MiB is mounted, for the daemon's packet buffers. Where that is no such mount, "
        "another one of the machine is used, with a warning unless this is the default.",
        Option("-H", "--huge-dir", "DIR"), example="/dev/hugepages",
    ),
    KeySpec(
        "VIRTIOFWD_SOCKET_DIR", "socket_dir", kinds.PATH, Section.SOCKETS,
        "Directory of the vhost-user sockets.",
        Option("-V", "--vhost-path", "DIR"),
    ),
    KeySpec(
        "VIRTIOFWD_SOCKET_FNAME_PATTERN", "socket_pattern", kinds.SOCKET_PATTERN, Section.SOCKETS,
        "Name of a vhost-user socket in that directory; %u stands for the relay's number.",
        Option("-S", "--vhost-socket", "PATTERN"),
    ),
    KeySpec(
        "VIRTIOFWD_SOCKET_OWNER", "socket_owner_account", kinds.USER, Section.SOCKETS,
        "User that owns the vhost-user sockets: the one that QEMU runs as. "
        "Where the machine has no user of the default's name the daemon's own is used, with a warning.",
        Option("-u", "--vhost-username", "USER", bare=""), default_text="libvirt-qemu",
    ),
    KeySpec(
        "VIRTIOFWD_SOCKET_GROUP", "socket_group_account", kinds.GROUP, Section.SOCKETS,
        "Group of the vhost-user sockets. "
        "Where the machine has no group of the default's name the daemon's own is used, with a warning.",
        Option("-g", "--vhost-groupname", "GROUP", bare=""), default_text="kvm",
    ),
    KeySpec(
        "VIRTIOFWD_VHOST_CLIENT", "vhost_client", kinds.FLAG, Section.SOCKETS,
        "Connect to sockets on which QEMU listens, and reconnect whenever it restarts, instead of listening.",
        Option("-i", "--vhostuser-client"),
    ),
    KeySpec(
        "VIRTIOFWD_DYNAMIC_SOCKETS", "dynamic_sockets", kinds.FLAG, Section.SOCKETS,
        "Start without sockets; each is added with its device by the add_sock operation of ZeroMQ port control.",
        Option("-d", "--dynamic-sockets"),
    ),
    KeySpec(
        "VIRTIOFWD_STATIC_VFS", "static_vfs", attachments.STATIC_VFS, Section.VFS,
        "VFs that are put on relays at start, beside any port control. A VF is a PCI address or DPDK devargs; the "
        "last = divides it from the relay. A bond has 2 to 8 members and a mode 0 to 6 (default 1, active "
        "backup): net_bonding0,mode=1,member=0000:05:08.1,member=0000:05:08.2=3. A member with arguments of its "
        "own stands in square brackets, the whole in quotes: "
        "'net_bonding0,member=[net_tap0,iface=t0],member=net_null0=3'.",
        Option("-P", "--add-pci-vf", "VF=RELAY", repeat=True),
        example="(0000:05:08.1=1 0000:05:08.2=2)", reloadable=True,
    ),
    KeySpec(
        "VIRTIOFWD_BIND_VFIO_PCI", "bind_vfio_pci", attachments.VFIO_BINDINGS, Section.VFS,
        "Devices to bind to the vfio-pci driver before the daemon starts: PCI addresses, or VFs of a netdev, all "
        "of them or the first few.",
        example="0000:05:08.1,ens1f0:4", works=False,
    ),
    KeySpec(
        "VIRTIOFWD_VFIO_VF_TOKEN", "vfio_vf_token", kinds.UUID, Section.VFS,
        "Token shared with the driver of the physical function, where that is vfio-pci too.",
        Option("-t", "--vfio-vf-token", "UUID"),
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_PORT_CONTROL_EP", "zmq_port_control_ep", kinds.ENDPOINT, Section.PORT_CONTROL,
        "ZeroMQ endpoint of port control. While it is set, the command file and OVSDB are not used. Whoever may use "
        "port control can open any DPDK device, and some run programs: give this right only to those who may be root.",
        Option(None, "--zmq-port-control-ep", "ENDPOINT", bare=f"{_RUN}/port_control"), example=f"{_RUN}/port_control",
    ),
    KeySpec(
        "VIRTIOFWD_IPC_PORT_CONTROL", "ipc_port_control", kinds.NOT_BLANK, Section.PORT_CONTROL,
        "Take port control commands from a file. While it is on, OVSDB is not used.",
        Option("-I", "--ipc"),
    ),
    KeySpec(
        "VIRTIOFWD_IPC_PATH", "command_file", kinds.PATH, Section.PORT_CONTROL,
        "The command file: a regular file of root's or the daemon's user that nobody else can write. Whoever can "
        "write it, or its directory, has the right of port control, which is as good as root's.",
        example="/tmp/vio_cmd",
    ),
    KeySpec(
        "VIRTIOFWD_OVSDB_SOCK_PATH", "ovsdb_socket", kinds.OPTIONAL_PATH, Section.PORT_CONTROL,
        "Socket of the ovsdb-server whose interfaces are watched for the key virtio_forwarder (or virtio_relay) of "
        "external_ids. Blank: OVSDB is not used. Whoever can write that database has the right of port control, which "
        "is as good as root's.",
        Option("-O", "--ovsdb-sock", "PATH"), example="/var/run/openvswitch/db.sock",
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_STATS_EP", "zmq_stats_ep", kinds.ENDPOINT, Section.ZMQ,
        "Endpoint of the statistics service, which virtioforwarder_stats.py and the like ask.",
        Option(None, "--zmq-stats-ep", "ENDPOINT", bare=f"{_RUN}/stats"), example=f"{_RUN}/stats",
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_CONFIG_EP", "zmq_config_ep", kinds.ENDPOINT, Section.ZMQ,
        "Endpoint of the configuration service, which tells relays' CPUs.",
        Option(None, "--zmq-config-ep", "ENDPOINT", bare=f"{_RUN}/config"), example=f"{_RUN}/config",
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_CORE_SCHED_EP", "zmq_core_sched_ep", kinds.ENDPOINT, Section.ZMQ,
        "Endpoint of the service that moves relays between CPUs. It is open only with "
        f"VIO4WD_CORE_SCHED_ENABLE=true, then by default on {DEFAULT_CORE_SCHED_EP}.",
        Option(None, "--zmq-core-sched-ep", "ENDPOINT", bare=DEFAULT_CORE_SCHED_EP), example=DEFAULT_CORE_SCHED_EP,
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_GROUP", "zmq_group_account", kinds.GROUP, Section.ZMQ,
        "Group whose members may use the services' unix sockets beside the daemon's own user. Where port control has "
        "one, its members can do what root can.",
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_CURVE_SERVER_KEY", "zmq_curve_server_key", kinds.OPTIONAL_PATH, Section.ZMQ,
        "Secret key file (a ZeroMQ certificate, *.key_secret) of the services. Needed for tcp:// endpoints, together "
        "with the clients' keys.",
        example="/etc/virtio-forwarder/server.key_secret",
    ),
    KeySpec(
        "VIRTIOFWD_ZMQ_CURVE_CLIENT_KEYS", "zmq_curve_client_keys", kinds.OPTIONAL_PATH, Section.ZMQ,
        "Directory of the public keys (ZeroMQ certificates, *.key) of the clients that may use tcp:// endpoints. "
        "Needed for tcp:// endpoints, together with the server's key. Where port control has one, these clients can do "
        "what root can.",
        example="/etc/virtio-forwarder/clients",
    ),
    KeySpec(
        "VIRTIOFWD_JUMBO", "jumbo", kinds.NOT_BLANK, Section.FEATURES,
        "Carry jumbo frames: VFs get an MTU of 9000 instead of 1500 bytes. Takes larger packet buffers, and offers "
        "mergeable receive buffers too.",
        Option("-J", "--enable-jumbo"),
    ),
    KeySpec(
        "VIRTIOFWD_MRGBUF", "mergeable_rx", kinds.NOT_BLANK, Section.FEATURES,
        "Offer mergeable receive buffers, which let a packet fill several of the VM's buffers.",
        Option("-R", "--enable-mrgbuf"),
    ),
    KeySpec(
        "VIRTIOFWD_TSO", "tso", kinds.NOT_BLANK, Section.FEATURES,
        "Offer TCP segmentation and checksum offload.",
        Option("-T", "--enable-tso"), works=False,
    ),
    KeySpec(
        "VIRTIOFWD_ZERO_COPY", "zero_copy", kinds.FLAG, Section.FEATURES,
        "Ask for zero copy from VM to VF where DPDK has it.",
        Option("-0", "--zero-copy"), works=False,
    ),
    KeySpec(
        "VIO4WD_CORE_SCHED_ENABLE", "core_sched_enabled", kinds.ONLY_TRUE, Section.SCHEDULER,
        "Let the load balancer move relays between CPUs while the daemon runs.",
    ),
    KeySpec(
        "VIO4WD_CORE_SCHED_SENSITIVITY", "scheduler_sensitivity", kinds.decimal(0, 1), Section.SCHEDULER,
        "The load balancer moves relays only where that takes at least this fraction of its load off the busiest CPU.",
    ),
    KeySpec(
        "VIO4WD_CORE_SCHED_POLL_INTERVAL", "scheduler_poll_interval_s", kinds.decimal(0.1, 3600, "seconds"),
        Section.SCHEDULER,
        "How often the load balancer looks.",
    ),
    KeySpec(
        "VIO4WD_CORE_SCHED_LOG_LEVEL", "scheduler_log_level", kinds.integer(0, 7), Section.SCHEDULER,
        "How much the load balancer logs, as VIRTIOFWD_LOG_LEVEL.",
    ),
    KeySpec(
        "VIO4WD_CORE_SCHED_GLOBAL_NUMA_OPT", "scheduler_global_numa", kinds.FLAG, Section.SCHEDULER,
        "Let the load balancer move relays to the worker CPUs of all NUMA nodes. Without it a relay is moved only to "
        "those of its own node, or to any where its node has none.",
    ),
)  # fmt: skip

KEYS: Mapping[str, KeySpec] = {spec.key: spec for spec in _KEYS}
"""All keys, by name, in the order of the documents."""

SCHEDULER_ONLY = frozenset(
    spec.key for spec in _KEYS if spec.section is Section.SCHEDULER and spec.field != "core_sched_enabled"
)
"""Keys that only the load balancer reads."""

IGNORED_KEYS: Mapping[str, str] = {
    "VIRTIOFWD_BINARY": "ignored: the daemon that reads this file is the one that runs",
}
"""Keys that older files have and that no longer mean anything, with what to say of them."""
