"""virtio-forwarder: relays packets between SR-IOV virtual functions and VMs' virtio-net devices."""

__version__ = "0.1.0"
