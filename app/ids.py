"""Identifiers with OpenAI's prefixes."""

import secrets

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def new_id(prefix: str, length: int = 24) -> str:
    """`prefix` followed by `length` random letters and digits (about 6 bits each), unguessable."""
    # The remainder of 64 more bits than are needed is even to one part in 2^64.
    number = int.from_bytes(secrets.token_bytes(length + 8))
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return prefix + "".join(digits)
