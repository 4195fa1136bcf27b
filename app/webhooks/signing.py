"""Signatures of messages (Standard Webhooks): receivers know by them who has sent a message, and when."""

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

from app.contracts.webhooks import WebhookEvent

PREFIX = "whsec_"
_SECRET_BYTES = 32
_NUM_SHOWN = 4


def new_secret() -> str:
    """A fresh signing secret."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    """So much of a secret that its owner can tell it from another."""
    # Without the padding, which is the same for all.
    return f"{PREFIX}****{secret.rstrip('=')[-_NUM_SHOWN:]}"


def signed(event: WebhookEvent, secrets_in_use: Sequence[str], now: float) -> tuple[bytes, dict[str, str]]:
    """A message as it is sent now: body and headers, with a signature by each secret that is in use."""
    body = event.model_dump_json()
    at = datetime.fromtimestamp(int(now), UTC)
    signatures = [Webhook(secret).sign(event.id, at, body) for secret in secrets_in_use]
    return body.encode(), {
        "content-type": "application/json",
        "user-agent": "Unforgotten-Webhooks/1",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(signatures),
    }
