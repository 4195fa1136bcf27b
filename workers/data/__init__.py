"""The texts this project ships: alignment set, evaluation prompts, demo upload (see README.md in this folder)."""
