"""Relays: lanes in shared memory, the compiled packet loop, the worker processes that run it and their control."""
