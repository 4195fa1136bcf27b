"""Every judge by name. A new one is one enum member, one file and one line of the table here."""

from enum import StrEnum

from workers.evaluation.judges.judge import Judge
from workers.evaluation.judges.refusal import RefusalPatterns


class JudgeName(StrEnum):
    """Names of judges, as settings have them."""

    REFUSAL_PATTERNS = "refusal_patterns"


JUDGES: dict[JudgeName, Judge] = {
    JudgeName.REFUSAL_PATTERNS: RefusalPatterns(),
}
DEFAULT_JUDGE = JudgeName.REFUSAL_PATTERNS
