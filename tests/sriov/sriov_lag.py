"""Run inside the machine: sends frames on an interface and prints how many of them come back, and how often."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bonds"))

from bond_traffic import exchange

from harness.netns import ETH_P_ALL

SECONDS = 15


def main() -> None:
    """Use the interface of the first argument for as many frames as the second says."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        sock.bind((sys.argv[1], 0))
        sock.setblocking(False)
        (found,) = exchange([sock], 0, range(int(sys.argv[2])), int(sys.argv[2]), SECONDS)
    print(len(set(found)), len(found))


if __name__ == "__main__":
    main()
