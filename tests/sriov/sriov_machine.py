"""A whole machine in QEMU with an SR-IOV network card (an emulated Intel 82576, igb) and an IOMMU.

Its root is the tests' Debian, this checkout is at its own path, and its card's cable ends in a socket here.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from harness.agent import AGENT, Agent, connect
from harness.debian_root import CHECKOUT, ROOTS, machine_root, require
from harness.guest_image import START, Recipe, guest_image
from harness.process import Child

QEMU = "qemu-system-x86_64"
PF = "0000:01:00.0"
VFS = tuple(f"0000:01:10.{function}" for function in (0, 2, 4, 6))
VF_MACS = tuple(bytes.fromhex("5254009900") + bytes([0x10 + number]) for number in range(len(VFS)))
BOOT_TIMEOUT_S = 60
MEMORY_MB = 2560
HUGEPAGES = 512

ENTER_ROOT = """
mkdir -p /lower /rw /root /compiled
share() { mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose "$1" "$2"; }
share root /lower
mount -t tmpfs -o size=512M rw /rw
mkdir -p /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root
cp -r /modules /modules.d /root/
for mounted in proc sys dev; do mount --move /$mounted /root/$mounted; done
mount -t tmpfs run /root/run
mount -t tmpfs tmp /root/tmp
mkdir -p "/root$checkout" /root/var/cache/virtio-forwarder /root/dev/hugepages
share checkout "/root$checkout"
share compiled /compiled
cp -r /compiled/. /root/var/cache/virtio-forwarder/
mount -t hugetlbfs -o pagesize=2M hugepages /root/dev/hugepages
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
"""
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "igb", "igbvf", "vfio-pci", "bonding", "veth")
RECIPE = Recipe(
    "linux-image-amd64",
    MODULES,
    f"{START}{ENTER_ROOT}cat >/root/agent <<'END'\n{AGENT}END\nexec chroot /root /bin/sh /agent\n",
)

PORTABLE_CODE = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
"""numba's environment for compiled code that runs on any CPU: QEMU emulates another one than this machine's."""


def compiled_code() -> Path:
    """The compiled loop for any CPU, and byte code beside our sources; made here, where it takes much less time."""
    directory = ROOTS / "compiled"
    compileall = [sys.executable, "-m", "compileall", "-q", CHECKOUT / "vio4wd", CHECKOUT / "tests" / "frontend"]
    subprocess.run(compileall, check=True, timeout=60)
    environment = os.environ | PORTABLE_CODE | {"CACHE_DIRECTORY": str(directory)}
    subprocess.run(
        [sys.executable, "-m", "vio4wd.relay.precompile"], check=True, env=environment, cwd=CHECKOUT, timeout=120
    )
    return directory


class SriovMachine:
    """The booted machine: commands go to ``run``, frames to and from its network card's cable.

    ``/modules`` lists the kernel modules that are loaded, in order; they are there to be loaded again.

    Raises:
        MachineUnavailable, ImageUnavailable: it cannot be made on this host.
    """

    def __init__(self, directory: Path) -> None:
        image = guest_image(RECIPE)
        devices = subprocess.run([QEMU, "-device", "help"], check=True, capture_output=True, text=True, timeout=20)
        require('name "igb"' in devices.stdout, "this QEMU emulates no SR-IOV card (igb): 8.0 or newer does")
        agent, cable = directory / "machine.agent", directory / "machine.cable"
        shares = {"root": machine_root(), "checkout": CHECKOUT, "compiled": compiled_code()}
        arguments: list[str | Path] = [
            QEMU, "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "2",
            "-m", str(MEMORY_MB), "-nographic", "-nodefaults", "-monitor", "none",
            "-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on",
            "-device", "pcie-root-port,id=rp1,slot=1,chassis=1",
            "-netdev", f"stream,id=n1,server=on,addr.type=unix,addr.path={cable}",
            "-device", "igb,bus=rp1,netdev=n1,mac=52:54:00:99:00:00",
            "-serial", "stdio", "-serial", f"unix:{agent},server=on,wait=off",
            "-kernel", image.kernel, "-initrd", image.initramfs,
            "-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off nokaslr intel_iommu=on iommu=pt"
            f" hugepages={HUGEPAGES} checkout={CHECKOUT}",
        ]  # fmt: skip
        for tag, path in shares.items():
            arguments += ["-fsdev", f"local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"]
            arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        self.child = Child(arguments, directory / "machine.log")
        self._agent: Agent | None = None
        self._cable: socket.socket | None = None
        try:
            self._agent = Agent(self.child, agent)
            self._cable = connect(cable)
            self._agent.wait_booted(BOOT_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def run(self, command: str, seconds: float = 30) -> str:
        """Run a shell command in the machine; answers its output, AssertionError if it fails."""
        assert self._agent is not None
        return self._agent.run(command, seconds)

    def bind(self, vf: str, driver: str) -> None:
        """Give a VF to a driver of the kernel, or to none with ''."""
        device = f"/sys/bus/pci/devices/{vf}"
        self.run(
            f"[ ! -e {device}/driver ] || echo {vf} >{device}/driver/unbind\n"
            f"echo '{driver}' >{device}/driver_override\necho {vf} >/sys/bus/pci/drivers_probe\n"
            f"[ \"$(basename $(readlink {device}/driver))\" = '{driver}' ]"
        )

    def send(self, frame: bytes) -> None:
        """Put a frame on the cable."""
        assert self._cable is not None
        self._cable.sendall(struct.pack(">I", len(frame)) + frame)

    def receive(self, seconds: float) -> bytes | None:
        """The next frame that the card has sent, None if none comes in time."""
        assert self._cable is not None
        deadline = time.monotonic() + seconds
        size = self._read(4, deadline)
        return size and self._read(struct.unpack(">I", size)[0], deadline + 5)

    def _read(self, count: int, deadline: float) -> bytes | None:
        assert self._cable is not None
        data = b""
        while len(data) < count:
            self._cable.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._cable.recv(count - len(data))
            except TimeoutError:
                assert not data, "half a frame"
                return None
            assert received, f"QEMU ended:\n{self.child.log[-2000:]}"
            data += received
        return data

    def stop(self) -> None:
        """End QEMU."""
        self.child.stop()
        for connection in (self._agent, self._cable):
            if connection is not None:
                connection.close()
        self._agent = self._cable = None
