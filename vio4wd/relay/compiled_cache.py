"""Where compiled code is kept on disk, so that only the first worker after an installation or a change compiles it.

numba decides by the file of the outermost function whether cached code is current. The loop is made of several files
and of record layouts, so each state of the sources gets a folder of its own, named by a digest of all of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numba
import numpy

from vio4wd.directories import check_directory, make_directory
from vio4wd.dpdk_ffi import compiled
from vio4wd.errors import StartupError
from vio4wd.relay.lanes import LANE_PADDED
from vio4wd.relay.lcore_record import LCORE

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("/var/cache/virtio-forwarder")


def _digest() -> str:
    layouts = (LANE_PADDED, LCORE)
    digest = hashlib.sha256(f"numba {numba.__version__} numpy {numpy.__version__} {layouts}".encode())
    for source in [*sorted(Path(__file__).parent.rglob("*.py")), Path(compiled.__file__)]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def use_cache() -> bool:
    """Keep what is compiled in the folder for these sources; answers False (and logs why) where that cannot be written.

    The cache is in systemd's CACHE_DIRECTORY, else in ``/var/cache/virtio-forwarder``.
    """
    folder = Path(os.environ.get("CACHE_DIRECTORY") or DEFAULT_DIRECTORY) / f"compiled-{_digest()}"
    try:
        make_directory(folder)
        check_directory("compile cache", folder)  # what others put there would be run
        compiled.keep_compiled(folder)
    except (OSError, StartupError) as error:
        log.warning("the compiled loop cannot be kept on disk (%s): every worker start compiles it again", error)
        return False
    return True
