from __future__ import annotations

import pytest

from vio4wd.config import Host

USERS = {"root": 0, "libvirt-qemu": 64055, "qemu": 107}
GROUPS = {"root": 0, "kvm": 108, "vio": 500}


@pytest.fixture
def host() -> Host:
    """A machine of 16 CPUs with the default user and group."""
    return Host(frozenset(range(16)), USERS.get, GROUPS.get)


@pytest.fixture
def bare_host() -> Host:
    """A machine of 2 CPUs without the default user and group."""
    return Host(frozenset({0, 1}), {"root": 0}.get, {"root": 0}.get)
