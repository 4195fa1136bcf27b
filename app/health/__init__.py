"""Is the service alive, and could it take a job?"""
