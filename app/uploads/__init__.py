"""Large files in parts, which can be sent at the same time and again."""
