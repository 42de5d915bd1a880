"""The vhost-user session broker: it owns the guest-facing sockets, checks and records each session, and replays it.

Public names: ``Broker`` and its ``Options``, ``Endpoint`` with ``SocketMode`` and ``EndpointError``, ``SessionView``
and ``SessionState``; ``backend.BackEnd`` is what the broker needs of workers.
"""

from vio4wd.vhostuser.broker import Broker
from vio4wd.vhostuser.endpoint import Endpoint, EndpointError, SocketMode
from vio4wd.vhostuser.options import Options
from vio4wd.vhostuser.session import SessionState, SessionView

__all__ = ["Broker", "Endpoint", "EndpointError", "Options", "SessionState", "SessionView", "SocketMode"]
