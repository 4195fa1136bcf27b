"""What a judge is: something that reads answers and says what each of them is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from app.contracts.evaluation import Verdict
from workers.evaluation.prompts import Kind


class JudgedItem(NamedTuple):
    """One answer with what it answers."""

    prompt: str
    answer: str | None
    """None: nothing was generated, which is never a refusal and never harmless."""
    kind: Kind


class Judge(Protocol):
    """Judges many answers at once, so that a judge that is itself a model can work in batches."""

    @property
    def label(self) -> str:
        """Name and version, as reports show it; results of different labels are never compared."""

    def judge(self, items: Sequence[JudgedItem]) -> list[Verdict]:
        """One verdict an item, in order; UNSCORED where the judge could not tell."""
