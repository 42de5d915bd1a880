"""What differs between two configurations, for a daemon that is told to read its file again."""

from __future__ import annotations

from dataclasses import dataclass

from vio4wd.config.keys import KEYS, SCHEDULER_ONLY
from vio4wd.config.model import Config, StaticVf


@dataclass(frozen=True)
class Changes:
    """Differences from an old to a new configuration.

    ``log_level`` is the new level, None where it is the same. ``cpu_pins_changed``: the new configuration's pins
    are to be applied. A static VF whose relay, devargs or bond differ is both removed and added; removals come first.
    ``not_reloadable`` are keys whose new values need a restart of the daemon.
    """

    log_level: int | None = None
    cpu_pins_changed: bool = False
    static_vfs_removed: tuple[StaticVf, ...] = ()
    static_vfs_added: tuple[StaticVf, ...] = ()
    not_reloadable: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Changes()


def changes(old: Config, new: Config) -> Changes:
    """Compare two configurations. Keys that only the load balancer reads are left out."""
    return Changes(
        log_level=new.log_level if new.log_level != old.log_level else None,
        cpu_pins_changed=new.cpu_pins != old.cpu_pins,
        static_vfs_removed=tuple(vf for vf in old.static_vfs if vf not in new.static_vfs),
        static_vfs_added=tuple(vf for vf in new.static_vfs if vf not in old.static_vfs),
        not_reloadable=tuple(
            spec.key
            for spec in KEYS.values()
            if not spec.reloadable
            and spec.key not in SCHEDULER_ONLY
            and getattr(old, spec.field) != getattr(new, spec.field)
        ),
    )
