"""The virtio features that guests are not offered, from the configuration (numbers: VirtIO 1.1, section 5.1.3)."""

from __future__ import annotations

from vio4wd.config.model import Config

_CSUM = 0
_GUEST_CSUM = 1
_GUEST_TSO4, _GUEST_TSO6, _GUEST_ECN, _GUEST_UFO = 7, 8, 9, 10
_HOST_TSO4, _HOST_TSO6, _HOST_ECN, _HOST_UFO = 11, 12, 13, 14
_MRG_RXBUF = 15

_OFFLOADS = (
    _CSUM, _GUEST_CSUM, _GUEST_TSO4, _GUEST_TSO6, _GUEST_ECN, _GUEST_UFO, _HOST_TSO4, _HOST_TSO6, _HOST_ECN, _HOST_UFO,
)  # fmt: skip


def disabled_features(config: Config) -> int:
    """A mask of the features that are withheld: offloads, and mergeable buffers without MRGBUF.

    Jumbo frames need mergeable buffers, so they bring them along.
    """
    withheld = _OFFLOADS if config.mergeable_rx or config.jumbo else (*_OFFLOADS, _MRG_RXBUF)
    return sum(1 << bit for bit in withheld)
