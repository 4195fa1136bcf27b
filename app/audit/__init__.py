"""Who did what: a log that is only added to, and whose entries are chained by their hashes."""
