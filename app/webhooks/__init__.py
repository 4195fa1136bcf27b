"""Telling a project's own services what became of its jobs."""
