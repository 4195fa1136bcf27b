"""SQLAlchemy rows, one file a table. Times are seconds since 1970 by the database's clock."""

from app.models.api_key import ApiKey
from app.models.audit_entry import AuditEntry
from app.models.base_model import BaseModelRow
from app.models.checkpoint import Checkpoint
from app.models.checkpoint_permission import CheckpointPermission
from app.models.deleted_item import DeletedItem
from app.models.evaluation import Evaluation
from app.models.event import Event, add_event
from app.models.file import File
from app.models.fine_tuned_model import FineTunedModel, model_name
from app.models.idempotent_request import IdempotentRequest
from app.models.job import Job
from app.models.preflight import Preflight
from app.models.project import Project
from app.models.upload import Upload, UploadPart
from app.models.webhook import WebhookDelivery, WebhookEndpoint
from app.models.work import Work
from app.models.worker_beat import WorkerBeat

__all__ = [
    "ApiKey",
    "AuditEntry",
    "BaseModelRow",
    "Checkpoint",
    "CheckpointPermission",
    "DeletedItem",
    "Evaluation",
    "Event",
    "File",
    "FineTunedModel",
    "IdempotentRequest",
    "Job",
    "Preflight",
    "Project",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Work",
    "WorkerBeat",
    "add_event",
    "model_name",
]
