"""Struct layouts and constants of DPDK, one generated module per ABI (scripts/generate_layouts)."""

from __future__ import annotations

import importlib
import platform

from vio4wd.dpdk_ffi.errors import DpdkMissingError
from vio4wd.dpdk_ffi.layouts.model import Field, Layout, Struct, View

__all__ = ["RELEASES", "Field", "Layout", "Struct", "View", "layout_of"]

RELEASES = {23: "22.11", 24: "23.11", 25: "24.11", 26: "25.11"}
"""DPDK's long-term releases by ABI, the number that ends the libraries' sonames."""


def layout_of(abi: int) -> Layout:
    """The layout of an ABI on this machine.

    Raises:
        DpdkMissingError: there is no generated table for this ABI or machine.
    """
    try:
        module = importlib.import_module(f"{__name__}.abi{abi}")
    except ModuleNotFoundError:
        raise DpdkMissingError(
            f"DPDK with ABI {abi} has no struct layouts here: generate them with scripts/generate_layouts"
        ) from None
    layout = module.LAYOUT
    assert isinstance(layout, Layout)
    if layout.machine != platform.machine():
        raise DpdkMissingError(
            f"struct layouts of DPDK ABI {abi} are for {layout.machine}, this machine is {platform.machine()}: "
            "generate them with scripts/generate_layouts"
        )
    return layout
