"""Identifiers with OpenAI's prefixes."""

import secrets

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def new_id(prefix: str, length: int = 24) -> str:
    """`prefix` followed by `length` random letters and digits (about 6 bits each), unguessable."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))
