"""Run inside the machine: a VM that sends every frame back to where it came from, until it is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frontend import FrontEnd


def main() -> None:
    """Serve the vhost-user socket of the first argument."""
    with FrontEnd(Path(sys.argv[1]), timeout=60) as vm:
        vm.handshake()
        vm.post_rx()
        print("ready", flush=True)
        while True:
            packets = vm.poll()
            for packet in packets:
                vm.send(packet.data[6:12] + packet.data[:6] + packet.data[12:])
            vm.reclaim()
            time.sleep(0 if packets else 0.001)


if __name__ == "__main__":
    main()
