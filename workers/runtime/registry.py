"""Every kind of background work and who handles it. A new kind is one line here."""

from collections.abc import Mapping

from app.contracts.states import WorkKind
from workers.runtime.base_handler import BaseHandler
from workers.runtime.delivery import Delivery
from workers.runtime.evaluation_handler import EvaluationHandler
from workers.runtime.handler import Subject, WorkHandler
from workers.runtime.job_handler import JobHandler
from workers.runtime.preflight_handler import PreflightHandler

HANDLERS: dict[WorkKind, type[WorkHandler]] = {
    WorkKind.FINE_TUNING_JOB: JobHandler,
    WorkKind.PREPARE_BASE: BaseHandler,
    WorkKind.PREFLIGHT: PreflightHandler,
    WorkKind.EVALUATE_ADAPTER: EvaluationHandler,
}
"""What workers take, in turns (turns.py), and run in a child process."""

SUBJECTS: Mapping[WorkKind, type[Subject]] = {**HANDLERS, WorkKind.DELIVER_WEBHOOK: Delivery}
"""All that is leased and reaped; messages are delivered by deliveries.py."""
