"""The child process that prepares a base: `python -m workers.preparation WORK_FOLDER`."""

import os
import sys
from pathlib import Path

from app.contracts.progress import BaseResultMessage
from app.contracts.specs import SPEC_FILE, PrepareSpec
from workers.channel import Channel, run_child
from workers.finetuning.artefacts import MODEL_DIR
from workers.modeling.loading import use_threads
from workers.modeling.text_parts import load_codec
from workers.preparation.run import prepare


def main() -> int:
    """Reads the spec and runs it."""
    folder = Path(sys.argv[1])
    spec = PrepareSpec.model_validate_json((folder / SPEC_FILE).read_text())
    use_threads(int(os.environ.get("UNFORGOTTEN_WORKER_THREADS", "0")))

    def work(channel: Channel) -> None:
        name = prepare(spec, channel)
        # Asked here and not recorded in the folder: bases that are prepared already need no new one to have it.
        codec = load_codec(spec.bases_dir / name / MODEL_DIR)
        channel.send(BaseResultMessage(prepared_hash=name, renders_tools=codec.why_no_tools is None))

    return run_child(work)


if __name__ == "__main__":
    sys.exit(main())
