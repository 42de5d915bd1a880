"""Values that name CPUs: the mask of worker CPUs, the master's CPU, pins of relays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vio4wd.config.host import Host
from vio4wd.config.kinds import BadValueError, Kind, Reading
from vio4wd.relay.interface import RELAYS, RelayCpus

_PIN = re.compile(r"(?:--virtio-cpu=)?([0-9]{1,6}):([0-9]{1,6})(?:,([0-9]{1,6}))?\Z")
_BITMAP = re.compile(r"0[xX][0-9a-fA-F]{1,1024}\Z")


def format_cpus(cpus: Iterable[int]) -> str:
    """Write CPU numbers shortly, runs of three and more as ``0-5``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _check_present(cpus: Iterable[int], host: Host) -> None:
    missing = sorted(set(cpus) - host.cpus)
    if missing:
        raise BadValueError(f"this machine has no CPU {format_cpus(missing)}, only {format_cpus(host.cpus)}")


def _mask_cpus(word: str) -> tuple[int, ...]:
    if _BITMAP.match(word):
        bits = int(word, 16)
        return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)
    parts = [part.strip() for part in word.split(",")]
    if not all(re.fullmatch("[0-9]{1,6}", part) for part in parts):
        raise BadValueError("is neither a list of CPUs nor a bitmap")
    return tuple(sorted({int(part) for part in parts}))


def _read_mask(reading: Reading) -> tuple[int, ...]:
    wanted = _mask_cpus(reading.word)
    if not wanted:
        raise BadValueError("names no CPU")
    if not reading.is_default or set(wanted) <= reading.host.cpus:
        _check_present(wanted, reading.host)
        return wanted
    present = tuple(cpu for cpu in wanted if cpu in reading.host.cpus) or (max(reading.host.cpus),)
    reading.warn(
        f"this machine has only CPU {format_cpus(reading.host.cpus)}: "
        f"CPU {format_cpus(present)} is used instead of the default {format_cpus(wanted)}"
    )
    return present


def _read_master(reading: Reading) -> int:
    if not re.fullmatch("[0-9]{1,6}", reading.word):
        raise BadValueError("is not a CPU number")
    cpu = int(reading.word)
    if reading.is_default and cpu not in reading.host.cpus:
        cpu = min(reading.host.cpus)
        reading.warn(f"this machine has no CPU {reading.word}: CPU {cpu} is used instead of the default")
    _check_present((cpu,), reading.host)
    return cpu


def parse_pin(text: str) -> tuple[int, RelayCpus]:
    """Read ``<relay>:<cpu>[,<cpu>]``, also with a leading ``--virtio-cpu=``: the relay, and the CPUs that serve it.

    The first CPU serves VF-to-VM, the second VM-to-VF; one CPU serves both.

    Raises:
        BadValueError: not written so, or no such relay.
    """
    match = _PIN.match(text.strip())
    if match is None:
        raise BadValueError(f"{text!r} is not <relay>:<cpu>[,<cpu>]")
    relay, first, second = match.groups()
    if int(relay) >= RELAYS:
        raise BadValueError(f"{text!r}: relays are 0 to {RELAYS - 1}")
    return int(relay), RelayCpus(int(first), int(second or first))


def _read_pins(reading: Reading) -> dict[int, RelayCpus]:
    pins: dict[int, RelayCpus] = {}
    for entry in filter(None, (part for word in reading.entries for part in word.split(";"))):
        relay, cpus = parse_pin(entry)
        if pins.get(relay, cpus) != cpus:
            reading.warn(f"relay {relay} is pinned twice: {entry!r} is used")
        pins[relay] = cpus
    return pins


def _write_pins(pins: Mapping[int, RelayCpus]) -> tuple[str, ...]:
    return tuple(
        f"{relay}:{cpus.vf_to_vm}" if cpus.vf_to_vm == cpus.vm_to_vf else f"{relay}:{cpus.vf_to_vm},{cpus.vm_to_vf}"
        for relay, cpus in sorted(pins.items())
    )


CPU_MASK = Kind(
    _read_mask,
    lambda cpus: (",".join(map(str, cpus)),),
    "CPU numbers with commas between, or a bitmap that starts with 0x",
    blank_is_default=True,
)
MASTER_CPU = Kind(_read_master, lambda cpu: (str(cpu),), "the number of a CPU", blank_is_default=True)
CPU_PINS = Kind(
    _read_pins,
    _write_pins,
    "<relay>:<cpu>[,<cpu>] with relay 0 to 63 and CPUs of the CPU mask; several with ; between or as an array",
)
