"""Port control and the ZeroMQ transport of all services.

``zmq_service.Service`` carries one service; ``port_control.PortControlService`` and ``config_service.ConfigService``
answer requests with a ``RelayController``; ``proto`` holds the messages; ``endpoint`` and ``curve`` open and protect
the sockets.
"""
