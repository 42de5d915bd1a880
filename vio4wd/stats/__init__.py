"""Statistics of the relays: the ZeroMQ stats service, rates over time, and the views that tools print."""
