"""The vhost-user session broker: it owns the guest-facing sockets, checks and records each session, and replays it."""
