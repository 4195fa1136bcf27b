"""The shared language of the API and the workers: values only. Standard library and pydantic, nothing else."""
