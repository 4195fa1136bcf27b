"""How far a job is: what its worker keeps of its messages, and what follows from it about the job's end."""

from app.contracts.value import Value


class JobProgress(Value):
    """Of the present attempt; times are seconds since 1970 by the database's clock."""

    step: int
    total_steps: int
    at: float
    """When the step was reported."""
    since_step: int
    since: float
    """The first report of this attempt: what lies before it says nothing about its pace."""
    after_training_seconds: float | None
    """What measuring, the gate and packaging took lately in jobs on the same base; None where none has ended."""
    trained_at: float | None = None
    """When training ended."""

    def next(self, step: int, now: float) -> "JobProgress":
        """After a further report."""
        known = self.model_copy(update={"step": step, "at": now})
        # Reports that arrive together say nothing about the time between them.
        return known.model_copy(update={"since_step": step}) if now <= self.since else known

    def trained(self, now: float) -> "JobProgress":
        """After training has ended; it is said again when a repaired model is measured, and the first time counts."""
        return self if self.trained_at is not None else self.model_copy(update={"trained_at": now})

    @property
    def estimated_finish(self) -> float | None:
        """None where nothing is known yet. Without an earlier job to learn from it is the end of training."""
        if self.trained_at is not None:
            return None if self.after_training_seconds is None else self.trained_at + self.after_training_seconds
        if self.step <= self.since_step:
            return None
        seconds_per_step = (self.at - self.since) / (self.step - self.since_step)
        return self.at + (self.total_steps - self.step) * seconds_per_step + (self.after_training_seconds or 0.0)
