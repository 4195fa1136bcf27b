"""What files are for, and how long they are kept."""

from app.errors import InvalidRequestError, UnsupportedError

FINE_TUNE = "fine-tune"
ADAPTER = "adapter"
EXPIRY_SECONDS = range(3600, 2_592_000 + 1)

_PURPOSES_ELSEWHERE = ("assistants", "batch", "vision", "user_data", "evals")


def check_purpose(purpose: str | None) -> str:
    """The purpose, if it is one that uploads may have here.

    Raises:
        InvalidRequestError: It is missing, OpenAI's but of no use here, or nobody's.
    """
    if purpose is None:
        raise InvalidRequestError(
            "Missing required parameter: purpose", param="purpose", code="missing_required_parameter"
        )
    if purpose in _PURPOSES_ELSEWHERE:
        what = f"The purpose {purpose} is not supported: files are for fine-tuning here. Use fine-tune or adapter."
        raise UnsupportedError(what, param="purpose")
    if purpose not in (FINE_TUNE, ADAPTER):
        what = "Unknown purpose. Use fine-tune for rows to train on, adapter for a LoRA adapter to evaluate."
        raise InvalidRequestError(what, param="purpose")
    return purpose


def check_expiry(anchor: str | None, seconds: str | int | None) -> int | None:
    """Seconds after its making that a file expires, if it does.

    Raises:
        InvalidRequestError: The anchor is not `created_at`, or the time out of bounds.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError("Only created_at is an anchor.", param="expires_after.anchor")
    text = "" if seconds is None else str(seconds)
    if not (text.isascii() and text.isdecimal()) or int(text) not in EXPIRY_SECONDS:
        what = f"Give a whole number from {EXPIRY_SECONDS.start} to {EXPIRY_SECONDS.stop - 1}."
        raise InvalidRequestError(what, param="expires_after.seconds")
    return int(text)
