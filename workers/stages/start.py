"""The adapter that a job's training goes on from, where the client named a fine-tuned model or a checkpoint.

It is taken for a stranger's, as every archive is: checked and written anew before PEFT sees it. What it was trained for
must be the weights that the base has now; its rank was taken over into the plan when the job was created.
"""

import shutil
from pathlib import Path

from workers.finetuning.errors import ArtefactMissing
from workers.modeling.archive import InvalidAdapter
from workers.modeling.untrusted import adopt_adapter
from workers.stages.context import StageContext


def adopt_start(context: StageContext) -> None:
    """Writes the start adapter's folder, where the job has one.

    Raises:
        ArtefactMissing: It was trained on other weights than the base's, or cannot be read.
    """
    start = context.spec.start
    if start is None:
        return
    base = context.spec.base_id
    if start.base_hash != context.artefacts.record["theta_safe_hash"]:
        raise ArtefactMissing(
            f"{start.model} was trained on {base} before that base was prepared anew, with other weights: on these it "
            f"would be another model. Train on from a model that was made since, or from {base} itself."
        )
    # What an attempt before this one may have left.
    shutil.rmtree(context.start_dir, ignore_errors=True)
    try:
        adopt_adapter(start.archive, context.artefacts.model_dir, context.start_dir, base_name=base)
    except InvalidAdapter as error:
        raise ArtefactMissing(f"The stored adapter of {start.model} cannot be trained on from: {error}") from error
    context.channel.say(
        f"Training goes on from {start.model}; safety is held to {base} and measured against it all the same"
    )


def start_dir(context: StageContext) -> Path | None:
    """The folder that `adopt_start` has written; None: training begins with a fresh adapter."""
    return None if context.spec.start is None else context.start_dir
