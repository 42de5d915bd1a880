"""Compiles the relay loop into the cache, so that the first start after an installation need not: ``python -m``."""

from __future__ import annotations

import sys

from vio4wd.relay.compiled_cache import use_cache


def main() -> int:
    """Compile; answers an exit status: 1 where nothing can be cached."""
    if use_cache() is None:
        return 1
    from vio4wd.relay.loop import compile_loop  # after the cache is chosen

    compile_loop(cached=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
