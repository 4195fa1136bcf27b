"""Projects: what they use, and what they may use."""
