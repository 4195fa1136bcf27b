"""Checkpoints of jobs: their adapters, and who may use them."""
