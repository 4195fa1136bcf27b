"""Identifiers with OpenAI's prefixes."""

import hashlib
import secrets

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def new_id(prefix: str, length: int = 24) -> str:
    """`prefix` followed by `length` random letters and digits (about 6 bits each), unguessable."""
    # The remainder of 64 more bits than are needed is even to one part in 2^64.
    return prefix + _letters(int.from_bytes(secrets.token_bytes(length + 8)), length)


def derived_id(prefix: str, seed: str, length: int = 24) -> str:
    """The same id for the same seed; as unguessable as the seed is."""
    return prefix + _letters(int.from_bytes(hashlib.sha512(f"{prefix}\0{seed}".encode()).digest()), length)


def _letters(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)
