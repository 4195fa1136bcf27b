"""Administration over HTTP: projects, their keys, the audit log. Needs a key that is an admin's."""
