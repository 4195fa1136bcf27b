"""Counting a file's tokens in a process of its own.

Why a process: tokens are counted by the code that trains (`workers.modeling`), so that the numbers are the job's; the
API never imports it. Why not a worker: the queue may be hours long, and an estimate is wanted before a job is made.
The process reads tokenizer and template from the prepared base, which lies on the file system that the API shares with
its workers, and needs transformers without torch: `pip install unforgotten[estimates]`, or the `worker` extra. It takes
a second or two to start; so many at a time may run, and each is killed when its time is over.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import structlog

from app.contracts.counting import CountResult, CountSpec
from app.errors import ServiceError
from app.storage import ObjectStorage
from app.tether import tethered

MOST_AT_ONCE = 2
"""So many processes are let run by one of the API's (see endpoints.py)."""
# Passwords of database, broker and object store are nothing to a process that reads a stranger's file.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
_SET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

log = structlog.get_logger()


class EstimatesUnavailableError(ServiceError):
    """This deployment cannot count tokens, or not those of this file; asking again would not help."""

    status = 501
    code = "estimates_unavailable"
    headers = {"x-should-retry": "false"}  # noqa: RUF012  (read only, like the others)


@dataclass(frozen=True)
class TokenCounter:
    """Runs `python -m workers.counting`."""

    max_seconds: float

    def count(self, spec: CountSpec) -> CountResult:
        """The answer of a process of its own.

        Raises:
            EstimatesUnavailableError: What counts is not installed, cannot see the base, or did not come to an end.
        """
        if find_spec("transformers") is None:
            what = "This service cannot count tokens: its operator has to install unforgotten[estimates] with the API."
            raise EstimatesUnavailableError(what)
        if not (spec.model_dir / "config.json").is_file():
            what = (
                "This service cannot see the prepared base: its operator has to give the API the same "
                "UNFORGOTTEN_ARTEFACTS_DIR as the workers, on a file system that they share."
            )
            raise EstimatesUnavailableError(what)
        try:
            done = subprocess.run(
                tethered([sys.executable, "-m", "workers.counting"], signal.SIGKILL),
                input=spec.model_dump_json().encode(),
                capture_output=True,
                env=_environment(),
                timeout=self.max_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            what = (
                f"Counting the file's tokens took longer than {self.max_seconds:g} seconds. A file with fewer rows, or "
                "with shorter ones, can be counted."
            )
            raise EstimatesUnavailableError(what) from error
        if done.returncode != 0:
            log.error("counting failed", status=done.returncode, errors=done.stderr.decode(errors="replace")[-4000:])
            what = "The file's tokens could not be counted; the service's log says why. Tell its operator."
            raise EstimatesUnavailableError(what)
        return CountResult.model_validate_json(done.stdout)


def _environment() -> dict[str, str]:
    source_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (source_root, os.environ.get("PYTHONPATH"))))
    return {name: os.environ[name] for name in _PASSED if name in os.environ} | _SET | {"PYTHONPATH": path}


@contextmanager
def beginning_of(storage: ObjectStorage, key: str, max_bytes: int) -> Iterator[tuple[Path, bool]]:
    """A local copy of a file's first lines, and whether it is all of them.

    Args:
        storage: Where the file lies.
        key: Its key.
        max_bytes: The line that passes them is the last.

    Raises:
        ObjectNotFoundError: The store does not have it.
    """
    with tempfile.TemporaryDirectory(prefix="unforgotten-count-") as folder:
        path = Path(folder) / "rows.jsonl"
        is_whole = True
        with path.open("wb") as target:
            for chunk in storage.stream(key):
                room = max(0, max_bytes - target.tell())
                end = chunk.find(b"\n", room) + 1
                if end:
                    target.write(chunk[:end])
                    is_whole = target.tell() == storage.size(key)
                    break
                target.write(chunk)
        yield path, is_whole
