"""Names of what travels over the broker. A message carries one id and nothing else."""

WORK_TASK = "unforgotten.work"
"""Argument: the id of a row of `work`."""
WORK_QUEUE = "unforgotten.work"
