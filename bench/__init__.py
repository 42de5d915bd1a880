"""Benchmarks. Each compares in one run, pair by pair, and ends in a line ``ratio: N.NN``."""
