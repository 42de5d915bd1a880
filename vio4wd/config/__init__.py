"""The daemon's configuration: the file /etc/default/virtioforwarder and the command line become one frozen Config.

``load`` reads it, ``dump`` writes it back, ``changes`` compares two of them for a reload.
"""

from vio4wd.config.dump import dump
from vio4wd.config.host import Host
from vio4wd.config.loader import DEFAULT_PATH, load, loads
from vio4wd.config.model import Account, Config, PortControl, RingEngine, StaticVf, VfioBinding
from vio4wd.config.reload import Changes, changes

__all__ = [
    "DEFAULT_PATH",
    "Account",
    "Changes",
    "Config",
    "Host",
    "PortControl",
    "RingEngine",
    "StaticVf",
    "VfioBinding",
    "changes",
    "dump",
    "load",
    "loads",
]
