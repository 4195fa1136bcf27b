"""Bearer keys: who is asking, and for which project."""
