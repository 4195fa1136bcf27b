"""The HTTP application. `create_app` takes its parts; `app` makes them from the settings, for `uvicorn --factory`."""

import gc
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

import app.adapters.endpoints
import app.catalog.endpoints
import app.checkpoints.endpoints
import app.estimates.endpoints
import app.evaluations.endpoints
import app.files.endpoints
import app.health.endpoints
import app.jobs.endpoints
import app.organization.endpoints
import app.preflight.endpoints
import app.reports.endpoints
import app.uploads.endpoints
import app.webhooks.endpoints
from app.adapters.service import AdapterService
from app.auth.service import AuthService
from app.broker import resolved_broker_url
from app.catalog.deletion import ModelDeletion
from app.catalog.service import CatalogService
from app.checkpoints.service import CheckpointService
from app.db import Database
from app.dependencies import Services
from app.envelope import Envelope
from app.errors import install_error_handlers
from app.estimates.counter import TokenCounter
from app.estimates.service import EstimateService, Price
from app.evaluations.service import EvaluationService
from app.files.content import UploadLimits
from app.files.service import FileService
from app.health.service import HealthService
from app.idempotency.service import IdempotencyService
from app.jobs.service import JobService
from app.logs import configure_logs
from app.openapi import install_openapi
from app.organization.service import OrganizationService
from app.preflight.service import PreflightService
from app.projects.rates import RequestRates
from app.queue import LatePublisher, Publisher
from app.reports.service import ReportService
from app.schema import ensure_schema
from app.settings import Settings
from app.storage import ObjectStorage
from app.uploads.service import UploadService
from app.webhooks.sending import Sender
from app.webhooks.service import WebhookService

# Looked through one after another for each request: what is asked most comes first.
_ROUTERS: tuple[APIRouter, ...] = (
    app.jobs.endpoints.router,
    app.files.endpoints.router,
    app.uploads.endpoints.router,
    app.reports.endpoints.router,
    app.adapters.endpoints.router,
    app.checkpoints.endpoints.router,
    app.preflight.endpoints.router,
    app.evaluations.endpoints.router,
    app.estimates.endpoints.router,
    app.catalog.endpoints.router,
    app.organization.endpoints.router,
    app.webhooks.endpoints.router,
    app.health.endpoints.router,
)
# Endpoints that stream their body and limit it themselves.
_STREAMED = re.compile(r"/v1/files/?|/v1/uploads/[^/]+/parts/?")
_BEATS_BEFORE_GONE = 6.0


def build_services(
    settings: Settings,
    database: Database,
    storage: ObjectStorage,
    publisher: Publisher,
    *,
    cancel_wait_seconds: float = 5.0,
) -> Services:
    """Every feature's service on the given parts."""
    limits = UploadLimits(settings.max_file_bytes, settings.max_line_bytes, settings.min_examples)
    worker_seconds = max(30.0, _BEATS_BEFORE_GONE * settings.heartbeat_seconds)
    adapters = AdapterService(database, storage)
    files = FileService(database, storage, limits)
    price = settings.price_per_million_tokens
    return Services(
        auth=AuthService(database, settings.limits),
        rates=RequestRates(),
        files=files,
        idempotency=IdempotencyService(database),
        uploads=UploadService(database, storage, files, settings.max_upload_bytes, settings.upload_seconds),
        jobs=JobService(
            database,
            publisher,
            settings.organization,
            settings.max_attempts,
            gate=settings.gate,
            evaluation=settings.evaluation,
            limits=settings.limits,
            cancel_wait_seconds=cancel_wait_seconds,
        ),
        preflights=PreflightService(database, publisher, settings.max_attempts),
        evaluations=EvaluationService(
            database,
            storage,
            publisher,
            adapters,
            settings.max_attempts,
            gate=settings.gate,
            evaluation=settings.evaluation,
        ),
        estimates=EstimateService(
            database,
            storage,
            settings.bases_dir,
            TokenCounter(settings.estimate_seconds).count,
            settings.estimate_max_bytes,
            None if price is None else Price(price, settings.price_currency),
            gate=settings.gate,
            evaluation=settings.evaluation,
        ),
        catalog=CatalogService(database, settings.organization),
        model_deletion=ModelDeletion(database, storage),
        checkpoints=CheckpointService(database, storage),
        reports=ReportService(database, storage),
        adapters=adapters,
        organization=OrganizationService(database),
        webhooks=WebhookService(database, Sender(settings.webhooks)),
        health=HealthService(database, storage, publisher, worker_seconds),
    )


def create_app(
    settings: Settings,
    *,
    database: Database,
    storage: ObjectStorage,
    publisher: Publisher,
    cancel_wait_seconds: float = 5.0,
) -> FastAPI:
    """The application on the given parts; it closes the database's connections when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        database.dispose()

    api = FastAPI(
        title="Unforgotten",
        version=version("unforgotten"),
        description="Fine-tuning as a service that keeps a model's safety alignment, with OpenAI's API.",
        lifespan=lifespan,
        # The framework's pages load their scripts from elsewhere; /openapi.json is there for any viewer.
        docs_url=None,
        redoc_url=None,
    )
    api.state.services = build_services(settings, database, storage, publisher, cancel_wait_seconds=cancel_wait_seconds)
    for router in _ROUTERS:
        api.include_router(router)
    install_error_handlers(api)
    install_openapi(api)
    api.add_middleware(Envelope, organization=settings.organization, unlimited_paths=_STREAMED)
    return api


def load() -> FastAPI:
    """The application as the environment describes it: `uvicorn --factory app.main:load`.

    Raises:
        NotMigratedError: The database needs `unforgotten db upgrade` first.
    """
    settings = Settings()
    configure_logs(settings.log_level)
    database = Database(settings.resolved_database_url)
    ensure_schema(database)
    api = create_app(
        settings,
        database=database,
        storage=ObjectStorage(settings.resolved_storage_url),
        publisher=LatePublisher(lambda: resolved_broker_url(settings)),
    )
    # Libraries and routes are some hundred thousand objects that stay until the process ends. Walking over them again
    # and again in search of garbage stops all requests for more than a tenth of a second each time.
    gc.collect()
    gc.freeze()
    return api
