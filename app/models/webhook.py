"""Whom to tell when a job ends, and what was told."""

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, JsonDict, JsonList, Seconds


class WebhookEndpoint(Row):
    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_project_created", "project_id", "created_at", "id"),)

    id: Mapped[Id]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[JsonList]
    signing_secret: Mapped[str] = mapped_column(String(128))
    """whsec_...: needed to sign, so it cannot be a hash; shown once, never logged."""
    old_signing_secret: Mapped[str | None] = mapped_column(String(128))
    """Signs beside the new one until `old_secret_expires_at`, so that receivers can change over."""
    old_secret_expires_at: Mapped[Seconds | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[Seconds | None]


class WebhookDelivery(Row):
    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("ix_webhook_deliveries_event", "endpoint_id", "event_id", unique=True),)

    id: Mapped[Id]
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    event_id: Mapped[str] = mapped_column(String(64))
    """evt_...: the same for all endpoints and all attempts, so that receivers can drop what they have seen."""
    event_type: Mapped[str] = mapped_column(String(64))
    body: Mapped[JsonDict]
    status: Mapped[str] = mapped_column(String(16))
    """contracts.states.DeliveryStatus."""
    num_attempts: Mapped[int] = mapped_column(Integer)
    response_status: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Seconds | None]
