"""An ovsdb-server of the tests' own, with its own database, socket and directory."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
LIMIT_S = 10


class OvsdbServer:
    """One database in a directory; its server can be started and killed any number of times."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "conf.db"
        self.socket = directory / "db.sock"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.create()

    def create(self) -> None:
        """Make the database anew, with nothing in it but a bridge."""
        self.database.unlink(missing_ok=True)
        _run("ovsdb-tool", "create", str(self.database), str(SCHEMA))

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = ["ovsdb-server", str(self.database), f"--remote=punix:{self.socket}", "--no-chdir"]
        command += [f"--unixctl={self._directory / 'ctl'}", f"--log-file={self._directory / 'log'}"]
        command += ["-vconsole:off", "-vsyslog:off"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT_S
        while not self._listens():
            assert time.monotonic() < deadline, "ovsdb-server does not start"
            assert self._process.poll() is None, "ovsdb-server has ended"
            time.sleep(0.01)
        self.vsctl("init")

    def _listens(self) -> bool:
        """Whether connections are taken: the socket file is there somewhat earlier."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """End the server with SIGKILL, if there is one; its socket stays behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT_S)
            self._process = None

    def stop(self) -> None:
        """End the server in the way that service managers do; the socket goes away."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(LIMIT_S)
        self._process = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def vsctl(self, *arguments: str) -> str:
        """Run ovs-vsctl, without waiting for ovs-vswitchd, of which there is none."""
        return _run("ovs-vsctl", f"--db=unix:{self.socket}", "--no-wait", f"--timeout={LIMIT_S}", *arguments)

    def transact(self, operations: str) -> str:
        """Run a transaction given in JSON."""
        return _run("ovsdb-client", f"--timeout={LIMIT_S}", "transact", f"unix:{self.socket}", operations)

    def add(
        self, name: str, relay: int | str | None = None, devargs: str | None = None, key: str = "virtio_forwarder"
    ) -> None:
        """Add a port to the bridge, tagged in the same transaction."""
        arguments = ["--may-exist", "add-br", "br-virtio", "--", "add-port", "br-virtio", name]
        arguments += ["--", "set", "interface", name, "external_ids:iface-id=port-of-" + name]
        if relay is not None:
            arguments.append(f'external_ids:{key}="{relay}"')
        if devargs is not None:
            arguments.append(f'external_ids:virtio_forwarder_devargs="{devargs}"')
        self.vsctl(*arguments)

    def tag(self, name: str, relay: int | str, key: str = "virtio_forwarder") -> None:
        """Set an interface's relay."""
        self.vsctl("set", "interface", name, f'external_ids:{key}="{relay}"')

    def untag(self, name: str, key: str = "virtio_forwarder") -> None:
        """Remove an interface's relay."""
        self.vsctl("remove", "interface", name, "external_ids", key)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S + 5, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
