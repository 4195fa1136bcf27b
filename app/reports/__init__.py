"""The report of a finished job."""
