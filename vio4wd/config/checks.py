"""Checks that need more than one key."""

from __future__ import annotations

from collections.abc import Iterator

from vio4wd.config.cpus import format_cpus
from vio4wd.config.keys import KEYS
from vio4wd.config.kinds import SOCKET_PATH_MAX
from vio4wd.config.model import Config, PortControl
from vio4wd.relay.interface import RELAYS

_DEFAULTS = Config()
_ENDPOINTS = {
    "zmq_port_control_ep": "VIRTIOFWD_ZMQ_PORT_CONTROL_EP",
    "zmq_stats_ep": "VIRTIOFWD_ZMQ_STATS_EP",
    "zmq_config_ep": "VIRTIOFWD_ZMQ_CONFIG_EP",
    "zmq_core_sched_ep": "VIRTIOFWD_ZMQ_CORE_SCHED_EP",
}


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and what is wrong with its value beside the others."""
    yield from _pins_in_mask(config)
    yield from _curve_keys(config)
    yield from _endpoints(config)
    longest = len(bytes(config.socket_path(RELAYS - 1)))
    if not config.dynamic_sockets and longest > SOCKET_PATH_MAX:
        yield (
            "VIRTIOFWD_SOCKET_DIR",
            f"with the socket's name the path has {longest} bytes, and unix sockets have {SOCKET_PATH_MAX} at most",
        )


def _pins_in_mask(config: Config) -> Iterator[tuple[str, str]]:
    for relay, cpus in config.cpu_pins.items():
        outside = {cpus.vf_to_vm, cpus.vm_to_vf} - set(config.worker_cpus)
        if outside:
            yield (
                "VIRTIOFWD_CPU_PINS",
                f"relay {relay}: CPU {format_cpus(outside)} is not one of VIRTIOFWD_CPU_MASK, "
                f"{format_cpus(config.worker_cpus)}",
            )


def _curve_keys(config: Config) -> Iterator[tuple[str, str]]:
    server, clients = "VIRTIOFWD_ZMQ_CURVE_SERVER_KEY", "VIRTIOFWD_ZMQ_CURVE_CLIENT_KEYS"
    if config.zmq_curve_server_key is not None and config.zmq_curve_client_keys is None:
        yield server, f"is of no use without {clients}: set both or neither"
    if config.zmq_curve_client_keys is not None and config.zmq_curve_server_key is None:
        yield clients, f"is of no use without {server}: set both or neither"


def _endpoints(config: Config) -> Iterator[tuple[str, str]]:
    keys = (config.zmq_curve_server_key, config.zmq_curve_client_keys)
    has_keys = keys != (None, None)  # one without the other is told of already
    users: dict[str, str] = {}
    for field, key in _ENDPOINTS.items():
        endpoint = getattr(config, field)
        if endpoint is None:
            continue
        if endpoint.startswith("tcp://") and not has_keys:
            yield (
                key,
                "tcp:// is open to the network, so it needs VIRTIOFWD_ZMQ_CURVE_SERVER_KEY "
                "and VIRTIOFWD_ZMQ_CURVE_CLIENT_KEYS",
            )
        if endpoint in users:
            yield key, f"{users[endpoint]} has this endpoint already: each service needs its own"
        users[endpoint] = key


def warnings(config: Config) -> Iterator[str]:
    """Yield what is allowed and yet surprises."""
    for spec in KEYS.values():
        if not spec.works and getattr(config, spec.field) != getattr(_DEFAULTS, spec.field):
            yield f"{spec.key} is set, but has no effect in this version"
    if config.port_control is PortControl.ZMQ and config.ipc_port_control:
        yield "VIRTIOFWD_IPC_PORT_CONTROL is not used: VIRTIOFWD_ZMQ_PORT_CONTROL_EP is set, and only one can be"
    if config.dynamic_sockets and config.port_control is not PortControl.ZMQ:
        yield "VIRTIOFWD_DYNAMIC_SOCKETS is on without VIRTIOFWD_ZMQ_PORT_CONTROL_EP: no socket can be added"
