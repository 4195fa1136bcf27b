"""What the API does under load, beside a bare route of the same framework."""
