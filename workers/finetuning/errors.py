"""What can go wrong in a training run. Plain exceptions, picklable, each also a builtin."""


class FinetuningError(Exception):
    """Base of this library's errors."""


class ArtefactMissing(FinetuningError, LookupError):
    """A method needs a prepared artefact that is not there. Never a reason to train without the method."""


class TrainingDiverged(FinetuningError, ArithmeticError):
    """A loss or gradient is not a number."""


class CheckpointDamaged(FinetuningError, ValueError):
    """A checkpoint does not hold what its manifest says."""


class CheckpointMismatch(FinetuningError, ValueError):
    """A checkpoint is that of another run."""


class DiskTooFull(FinetuningError, RuntimeError):
    """The disk does not hold what a run will write; the message has the numbers."""


class DatasetRefused(FinetuningError, ValueError):
    """No training is possible on these rows; the message names the row."""


class ValidationRefused(DatasetRefused):
    """The same of the validation rows."""


class ProcessesDiffer(FinetuningError, RuntimeError):
    """Processes that train together do not have the same data or parameters."""


class TooFewDevices(FinetuningError, RuntimeError):
    """More processes train together than there are GPUs for."""
