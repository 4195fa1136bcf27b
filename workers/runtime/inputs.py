"""What work needs from outside its folder: a prepared base, and stored files with the bytes that were sent."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from app.contracts.states import FailureCode
from app.models import BaseModelRow, File
from app.settings import Settings
from app.storage import ObjectNotFoundError, ObjectStorage
from workers.hashing import file_sha256
from workers.runtime.handler import WorkFailedError

_NAMES = {
    "training_file": "training_file.jsonl",
    "validation_file": "validation_file.jsonl",
    "adapter_file": "adapter.tar.gz",
    "fine_tuning_job": "adapter.tar.gz",
    "model": "start_adapter.tar.gz",
}
_CODES = {
    "training_file": FailureCode.INVALID_TRAINING_FILE,
    "validation_file": FailureCode.INVALID_VALIDATION_FILE,
    "adapter_file": FailureCode.INVALID_ADAPTER,
    "fine_tuning_job": FailureCode.ARTEFACT_MISSING,
    "model": FailureCode.ARTEFACT_MISSING,
}
_WHAT = {
    "training_file": "training file",
    "validation_file": "validation file",
    "adapter_file": "uploaded adapter",
    "fine_tuning_job": "job's adapter",
    "model": "model's adapter",
}


@dataclass(frozen=True)
class Input:
    """A stored file that a request names."""

    param: str
    """Of the request: it is in the failure when the file cannot be used."""
    storage_key: str
    sha256: str


def find_upload(session: Session, file_id: str, param: str) -> Input:
    """Where an uploaded file lies.

    Raises:
        WorkFailedError: It was deleted.
    """
    file = session.get(File, file_id)
    if file is None:
        raise _gone(param)
    return Input(param, file.storage_key, file.sha256)


def fetch(storage: ObjectStorage, wanted: Input, folder: Path) -> Path:
    """The file in the work folder, with the bytes that were stored; it is not fetched again where it is there.

    Raises:
        WorkFailedError: It is gone or damaged.
    """
    path = folder / _NAMES[wanted.param]
    if path.is_file() and file_sha256(path) == wanted.sha256:
        return path
    try:
        storage.get_file(wanted.storage_key, path)
    except ObjectNotFoundError:
        raise _gone(wanted.param) from None
    if file_sha256(path) != wanted.sha256:
        raise WorkFailedError(
            _CODES[wanted.param],
            f"The stored {_WHAT[wanted.param]} is damaged: its checksum is not that of what was stored. "
            f"{_what_to_do(wanted.param)}",
            param=wanted.param,
        )
    return path


def find_base(session: Session, settings: Settings, base_id: str) -> Path:
    """Folder of a prepared base.

    Raises:
        WorkFailedError: It was never prepared, or what was prepared is not on this worker.
    """
    base = session.get_one(BaseModelRow, base_id)
    # Whatever the status: a base that is being prepared anew still has what was prepared before.
    if base.prepared_hash is None:
        raise WorkFailedError(
            FailureCode.BASE_NOT_READY,
            f"The base model {base.id} is not ready (it is {base.status}). Wait until GET /v1/models lists it, or have "
            f"the operator run `unforgotten models prepare {base.id}`; then ask again.",
            param="model",
        )
    prepared_dir = settings.bases_dir / base.prepared_hash
    if not prepared_dir.is_dir():
        raise WorkFailedError(
            FailureCode.ARTEFACT_MISSING,
            f"The prepared files of the base model {base.id} are not on this worker. Have the operator share "
            f"UNFORGOTTEN_ARTEFACTS_DIR with it or run `unforgotten models prepare {base.id}`.",
            param="model",
        )
    return prepared_dir


def _gone(param: str) -> WorkFailedError:
    return WorkFailedError(
        _CODES[param], f"The {_WHAT[param]} was deleted before it was read. {_what_to_do(param)}", param=param
    )


def _what_to_do(param: str) -> str:
    is_ours = param in ("fine_tuning_job", "model")
    return "Tell the service's operator." if is_ours else "Upload it again and ask again."
