"""A real worker whose children are fakes: `worker_with_fakes.py SCENARIO`, settings from the environment."""

import os
import sys
from pathlib import Path

from app.contracts.states import WorkKind
from app.settings import Settings
from workers.celery_app import Worker

if __name__ == "__main__":
    fake = [sys.executable, str(Path(__file__).with_name("fake_child.py")), sys.argv[1]]
    patience_seconds = float(os.environ.get("TEST_PATIENCE_SECONDS", "60"))
    Worker(Settings(), dict.fromkeys(WorkKind, fake), patience_seconds=patience_seconds).run()
