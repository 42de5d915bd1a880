"""The OVSDB monitor: relays follow the ``external_ids`` of Open vSwitch's interfaces.

``monitor.OvsdbMonitor`` is what the daemon runs; ``replica`` follows the database in a thread of its own;
``interfaces`` says what an Interface row asks for.
"""
