"""GET /v1/models, GET /v1/safety/methods."""

from fastapi import APIRouter

from app.catalog.schemas import ModelDeleted, ModelList, ModelObject, SafetyMethodList
from app.dependencies import ServicesDep, TenantDep

router = APIRouter(prefix="/v1", tags=["Models"])


@router.get("/models")
def list_models(tenant: TenantDep, services: ServicesDep) -> ModelList:
    """Base models that jobs can be made on, and the project's fine-tuned models."""
    return services.catalog.list(tenant)


# Names of fine-tuned models may come with encoded slashes, which are decoded before routing.
@router.get("/models/{model_id:path}")
def get_model(model_id: str, tenant: TenantDep, services: ServicesDep) -> ModelObject:
    """One model."""
    return services.catalog.get(tenant, model_id)


@router.delete("/models/{model_id:path}")
def delete_model(model_id: str, tenant: TenantDep, services: ServicesDep) -> ModelDeleted:
    """Deletes a fine-tuned model of the project, with its adapter and those of its checkpoints."""
    return services.model_deletion.delete(tenant, model_id)


@router.get("/safety/methods", tags=["Safety"])
def list_methods(_: TenantDep, services: ServicesDep) -> SafetyMethodList:
    """Ways to keep a model's safety while it is fine-tuned, what can be combined with them, and all settings."""
    return services.catalog.methods()
