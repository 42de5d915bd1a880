"""QEMU guests with a Linux kernel whose only network card is on one of our relays."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from harness.agent import Agent, connect
from harness.guest_image import GuestImage
from harness.process import Child, wait_for

BOOT_TIMEOUT_S = 40
MEMORY_MB = 160
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 ipv6.disable=1 net.ifnames=0 mitigations=off nokaslr cryptomgr.notests audit=0"
)
"""The last four save a third of the time to boot."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Nic:
    """A network card on the vhost-user socket ``sock``.

    ``device`` are properties of virtio-net-pci (``packed=on,mrg_rxbuf=off``). With ``server`` QEMU listens on the
    socket and the daemon connects; otherwise QEMU connects, again and again with ``reconnect``.
    """

    sock: Path
    device: str = ""
    queues: int = 1
    server: bool = False
    reconnect: bool = False

    def options(self, number: int) -> list[str]:
        """QEMU's options for the guest's card ``eth<number>``."""
        mode = ",server=on,wait=off" if self.server else ",reconnect=1" if self.reconnect else ""
        device = f"virtio-net-pci,netdev=n{number},mac=52:54:00:77:00:{number + 2:02x},romfile="
        if self.queues > 1:
            device += f",mq=on,vectors={2 * self.queues + 2}"
        return [
            "-chardev", f"socket,id=c{number},path={self.sock}{mode}",
            "-netdev", f"vhost-user,id=n{number},chardev=c{number},queues={self.queues}",
            "-device", ",".join(filter(None, (device, self.device))),
        ]  # fmt: skip


class LinuxGuest:
    """A guest that boots to a shell, which ``run`` sends commands to; its network cards are ``eth0``, ``eth1``, ...

    ``incoming`` is the socket of a migration to wait for instead of booting.
    """

    def __init__(
        self, image: GuestImage, directory: Path, *nics: Nic, incoming: Path | None = None, cpu: int = 0
    ) -> None:
        name = f"guest{os.getpid()}x{next(_numbers)}"
        self._agent_path, self._qmp_path = directory / f"{name}.agent", directory / f"{name}.qmp"
        self._agent: Agent | None = None
        self._qmp: socket.socket | None = None
        self._answers: TextIO | None = None
        arguments: list[str | Path] = [
            "taskset", "-c", str(cpu), "qemu-system-x86_64", "-accel", "tcg", "-M", "q35,memory-backend=m0",
            "-m", str(MEMORY_MB), "-smp", "1", "-nographic", "-nodefaults", "-monitor", "none",
            "-object", f"memory-backend-memfd,id=m0,size={MEMORY_MB}M,share=on",
            "-serial", "stdio", "-serial", f"unix:{self._agent_path},server=on,wait=off",
            "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
            "-kernel", image.kernel, "-initrd", image.initramfs, "-append", COMMAND_LINE,
        ]  # fmt: skip
        for number, nic in enumerate(nics):
            arguments += nic.options(number)
        if incoming:
            arguments += ["-incoming", f"unix:{incoming}"]
        self.child = Child(arguments, directory / f"{name}.log")
        try:
            self._agent = Agent(self.child, self._agent_path)
            self._qmp = connect(self._qmp_path)
            self._answers = self._qmp.makefile("r")
            self._answers.readline()
            self.monitor("qmp_capabilities")
            if not incoming:
                self.wait_booted()
        except BaseException:
            self.stop()
            raise

    @property
    def agent(self) -> Agent:
        """The guest's shell."""
        assert self._agent is not None, "the guest has been stopped"
        return self._agent

    def wait_booted(self, seconds: float = BOOT_TIMEOUT_S) -> None:
        """Wait for the shell; also after a restart of the guest."""
        self.agent.wait_booted(seconds)

    def run(self, command: str, seconds: float = 20) -> str:
        """Run a shell command in the guest; answers its output, AssertionError if it fails."""
        return self.agent.run(command, seconds)

    def features(self, number: int = 0) -> set[int]:
        """The virtio feature bits that the driver of a network card has negotiated."""
        bits = self.run(f"cat /sys/class/net/eth{number}/device/features").strip()
        return {index for index, bit in enumerate(bits) if bit == "1"}

    def monitor(self, command: str, arguments: Mapping[str, object] | None = None) -> dict[str, object]:
        """Carry out a QMP command that returns an object; answers it."""
        assert self._qmp is not None and self._answers is not None
        self._qmp.settimeout(20)
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode())
        while True:
            answer = json.loads(self._answers.readline())
            assert "error" not in answer, f"{command}: {answer}"
            if "return" in answer:
                return dict(answer["return"])

    def migrate(self, path: Path, seconds: float = 20) -> int:
        """Move to the QEMU that waits for it at a socket; this one is left paused.

        Answers for how many ms the guest stood still.
        """
        self.monitor("migrate-set-parameters", {"max-bandwidth": 1 << 30})
        self.monitor("migrate", {"uri": f"unix:{path}"})
        answer: dict[str, object] = {}

        def done() -> bool:
            answer.update(self.monitor("query-migrate"))
            assert answer.get("status") != "failed", answer
            return answer.get("status") == "completed"

        wait_for(done, seconds, "the guest to be migrated")
        return int(str(answer["downtime"]))

    def kill(self) -> None:
        """SIGKILL, as a crash of QEMU."""
        self.child.process.kill()
        self.stop()

    def stop(self) -> None:
        """End QEMU."""
        self.child.stop()
        if self._answers is not None:
            self._answers.close()
        for connection in (self._agent, self._qmp):
            if connection is not None:
                connection.close()
        self._agent = self._qmp = None
