"""ctypes bindings of DPDK. Nothing above this package sees a ctypes type, except plain integers for addresses.

``loader.load`` finds the libraries and ``eal.Eal`` starts DPDK. ``mempool.Mempool``, ``ethdev.EthPort``,
``bond.BondPort``, ``vhost.VhostDriver`` and ``vhost.VhostDevice`` are its things; ``log.LogStream`` has its messages.
``functions`` has the table of signatures, ``layouts`` the structs of each ABI, ``errors`` what is raised.
"""
