"""Names of what travels over the broker. A message carries one id and nothing else."""

WORK_TASK = "unforgotten.work"
"""Argument: the id of a row of `work`."""
SWEEP_TASK = "unforgotten.sweep"
"""No argument: reap expired leases, ring again for queued work."""
WORK_QUEUE = "unforgotten.work"
HOUSEKEEPING_QUEUE = "unforgotten.housekeeping"
