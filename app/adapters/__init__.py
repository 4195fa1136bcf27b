"""The adapter of a finished job."""
