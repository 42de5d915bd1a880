"""The direct engine: compiled Python that works guests' rings in the memory that rte_vhost has mapped.

``engine.forward`` polls a lane; ``rings.load_ring`` and ``rings.unload_ring`` start and end its work on a ring.
"""
