#!/usr/bin/env python3
"""Generate vio4wd/portctl/proto/virtioforwarder_pb2.py and .pyi from the .proto file beside them (needs grpcio-tools).

An argument names another directory to write the tree to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import _bootstrap

ROOT = Path(__file__).resolve().parent.parent
PROTO = "vio4wd/portctl/proto/virtioforwarder.proto"


def main() -> int:
    """Run protoc; answers its exit status."""
    from grpc_tools import protoc  # by the Python that _bootstrap has found

    target = sys.argv[1] if len(sys.argv) > 1 else str(ROOT)
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={target}", f"--pyi_out={target}", str(ROOT / PROTO)]
    return int(protoc.main(arguments))


if __name__ == "__main__":
    _bootstrap.run("generate_proto")
