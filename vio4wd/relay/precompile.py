"""Compiles what workers need into the cache, so that the first start after an installation need not: ``python -m``."""

from __future__ import annotations

import sys

from vio4wd.dpdk_ffi.compiled import kept
from vio4wd.dpdk_ffi.log_writer import compile_writer
from vio4wd.relay.blame import Notes
from vio4wd.relay.compiled_cache import use_cache
from vio4wd.relay.loop import compile_loop


def main() -> int:
    """Compile; answers an exit status: 1 where nothing can be cached."""
    if not use_cache():
        return 1
    compile_writer()
    compile_loop(cached=True)
    Notes(0).watch(cached=True)
    return 0 if kept() else 1


if __name__ == "__main__":
    sys.exit(main())
