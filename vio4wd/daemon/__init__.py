"""The supervisor process: relays' desired state, the services around them, start and stop."""
