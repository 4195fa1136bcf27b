"""Measurements that claims rest on: each is a command; its results lie in `results/` with that command."""
