"""Uploads in parts, webhooks, idempotent requests, the audit log, shared checkpoints, fair queues, continued models.

Revision: 0003, after 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_WITH_DEFAULT = (("projects", "priority"), ("projects", "limits"), ("jobs", "micro_batch_divisor"))
# In an order in which foreign keys find what they refer to.
_TABLES = (
    "uploads",
    "upload_parts",
    "webhook_endpoints",
    "webhook_deliveries",
    "idempotent_requests",
    "audit_log",
    "checkpoint_permissions",
)

# Entries are added and read. A database's owner can drop the triggers; `unforgotten audit verify` sees what was done.
_SQLITE_TRIGGERS = tuple(
    f"CREATE TRIGGER audit_log_no_{change.lower()} BEFORE {change} ON audit_log "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END"
    for change in ("UPDATE", "DELETE")
)
_POSTGRESQL_TRIGGERS = (
    """
    CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$
    """,
    """
    CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit_log()
    """,
    """
    CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit_log()
    """,
)


def _added() -> dict[str, tuple[sa.Column[Any], ...]]:
    return {
        "projects": (
            sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("limits", _JSON, nullable=False, server_default="{}"),
            sa.Column("served_at", sa.Double(), nullable=True),
        ),
        "base_models": (sa.Column("renders_tools", sa.Boolean(), nullable=True),),
        "work": (sa.Column("project_id", sa.String(length=64), nullable=True),),
        "jobs": (
            sa.Column("start_adapter_key", sa.String(length=256), nullable=True),
            sa.Column("start_adapter_sha256", sa.String(length=64), nullable=True),
            sa.Column("start_base_hash", sa.String(length=64), nullable=True),
            sa.Column("adapter_rank", sa.Integer(), nullable=True),
            sa.Column("base_hash", sa.String(length=64), nullable=True),
            sa.Column("progress", _JSON, nullable=True),
            sa.Column("micro_batch_divisor", sa.Integer(), nullable=False, server_default="1"),
        ),
        "checkpoints": (
            sa.Column("adapter_key", sa.String(length=256), nullable=True),
            sa.Column("adapter_sha256", sa.String(length=64), nullable=True),
            sa.Column("adapter_bytes", sa.BigInteger(), nullable=True),
            sa.Column("released_at", sa.Double(), nullable=True),
        ),
        "evaluations": (sa.Column("checkpoint_id", sa.String(length=64), nullable=True),),
    }


def upgrade() -> None:
    # Columns are added in place, as in 0002: a copied table would lose what refers to it on SQLite.
    for table, columns in _added().items():
        for column in columns:
            op.add_column(table, column)
    op.create_index("ix_work_project_state", "work", ["project_id", "state"])
    op.create_index("ix_checkpoints_model_name", "checkpoints", ["model_name"])
    if op.get_bind().dialect.name != "sqlite":
        for table, name in _WITH_DEFAULT:
            op.alter_column(table, name, server_default=None)
    _create_uploads()
    _create_upload_parts()
    _create_webhook_endpoints()
    _create_webhook_deliveries()
    _create_idempotent_requests()
    _create_audit_log()
    _create_checkpoint_permissions()


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_change_of_audit_log()")
    op.drop_index("ix_checkpoints_model_name", "checkpoints")
    op.drop_index("ix_work_project_state", "work")
    for table, columns in reversed(_added().items()):
        for column in reversed(columns):
            op.drop_column(table, column.name)


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("mime_type", sa.String(length=128), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires_after_seconds", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("part_ids", sa.Text(), nullable=True),
        sa.Column("file_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_uploads_project_id_projects"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_created_at", "uploads", ["created_at"])
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])
    op.create_index("ix_uploads_project_created", "uploads", ["project_id", "created_at", "id"])


def _create_upload_parts() -> None:
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("upload_id", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("storage_key", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_parts_upload_id_uploads"),
        sa.PrimaryKeyConstraint("id", name="pk_upload_parts"),
    )
    op.create_index("ix_upload_parts_created_at", "upload_parts", ["created_at"])
    op.create_index("ix_upload_parts_upload_id", "upload_parts", ["upload_id"])


def _create_webhook_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", _JSON, nullable=False),
        sa.Column("signing_secret", sa.String(length=128), nullable=False),
        sa.Column("old_signing_secret", sa.String(length=128), nullable=True),
        sa.Column("old_secret_expires_at", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_webhook_endpoints_project_id_projects"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index("ix_webhook_endpoints_created_at", "webhook_endpoints", ["created_at"])
    op.create_index("ix_webhook_endpoints_project_created", "webhook_endpoints", ["project_id", "created_at", "id"])


def _create_webhook_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("endpoint_id", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("event_type", sa.String(length=64), nullable=False),
        sa.Column("body", _JSON, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("response_status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name="fk_webhook_deliveries_endpoint_id_webhook_endpoints"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    op.create_index("ix_webhook_deliveries_created_at", "webhook_deliveries", ["created_at"])
    op.create_index("ix_webhook_deliveries_event", "webhook_deliveries", ["endpoint_id", "event_id"], unique=True)


def _create_idempotent_requests() -> None:
    op.create_table(
        "idempotent_requests",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_idempotent_requests_project_id_projects"),
        sa.PrimaryKeyConstraint("id", name="pk_idempotent_requests"),
    )
    op.create_index("ix_idempotent_requests_created_at", "idempotent_requests", ["created_at"])
    op.create_index("ix_idempotent_requests_expires_at", "idempotent_requests", ["expires_at"])


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=False),
        sa.Column("data", _JSON, nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_log"),
        sa.UniqueConstraint("hash", name="uq_audit_log_hash"),
    )
    op.create_index("ix_audit_log_project", "audit_log", ["project_id", "seq"])
    statements = _SQLITE_TRIGGERS if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL_TRIGGERS
    for statement in statements:
        op.execute(statement)


def _create_checkpoint_permissions() -> None:
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("checkpoint_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name="fk_checkpoint_permissions_checkpoint_id_checkpoints"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_checkpoint_permissions_project_id_projects"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint_permissions"),
    )
    op.create_index(
        "ix_checkpoint_permissions_checkpoint_project",
        "checkpoint_permissions",
        ["checkpoint_id", "project_id"],
        unique=True,
    )
    op.create_index("ix_checkpoint_permissions_created_at", "checkpoint_permissions", ["created_at"])
    op.create_index("ix_checkpoint_permissions_project_id", "checkpoint_permissions", ["project_id"])
