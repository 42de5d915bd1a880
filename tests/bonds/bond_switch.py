"""Open vSwitch in a namespace: the other end of an 802.3ad bond."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bond_wires import Wires

from harness.process import Child

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


class Switch:
    """ovs-vswitchd with a bridge ``br0`` whose ports are the bridge itself and a LACP bond of the wires' far ends."""

    def __init__(self, wires: Wires, directory: Path) -> None:
        self._wires = wires
        self._db = f"unix:{directory}/db.sock"
        self._control = directory / "vswitchd.ctl"
        self._children: list[Child] = []
        subprocess.run(["ovsdb-tool", "create", directory / "conf.db", SCHEMA], check=True, timeout=20)
        try:
            server = self._start(
                directory,
                "ovsdb-server",
                directory / "conf.db",
                f"--remote=p{self._db}",
                f"--unixctl={directory}/db.ctl",
            )
            server.wait_for_log("ovsdb-server (Open vSwitch)")
            self._start(directory, "ovs-vswitchd", self._db, f"--unixctl={self._control}")
            self._vsctl("--no-wait", "init")
            self._vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
            self._vsctl(
                "add-bond", "br0", "lag", *wires.far, "lacp=active", "bond_mode=balance-slb",
                "other_config:lacp-time=fast",
            )  # fmt: skip
        except BaseException:
            self.stop()
            raise

    def _start(self, directory: Path, program: str, *arguments: str | Path) -> Child:
        words = ["ip", "netns", "exec", self._wires.namespace, program, *arguments, "-vconsole:info"]
        self._children.append(Child(words, directory / f"{program}.log"))
        return self._children[-1]

    def _vsctl(self, *arguments: str) -> None:
        subprocess.run(["ovs-vsctl", f"--db={self._db}", "--timeout=20", *arguments], check=True, timeout=30)

    def lacp(self) -> str:
        """What the switch says of its LACP partner."""
        return self._ask("lacp/show", "lag")

    def members_up(self) -> int:
        """Members of the bond that carry traffic."""
        return self._ask("bond/show", "lag").count(": enabled")

    def _ask(self, *command: str) -> str:
        words = ["ovs-appctl", f"--target={self._control}", "--timeout=5", *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout

    def stop(self) -> None:
        """End both programs."""
        for child in reversed(self._children):
            child.stop()
