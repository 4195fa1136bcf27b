"""What an evaluation found, in numbers with their uncertainty: the report's body.

Absent is not zero: an answer nobody could score is counted as unscored and left out of the rate, and a rate over
nothing does not exist (None).
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from app.contracts.gate import GateDecision, Repair
from app.contracts.methods import MethodConfig
from app.contracts.modifiers import Ema, MergeConfig
from app.contracts.objectives import Objective, Supervised
from app.contracts.risk import DataRisk, RiskOutcome
from app.contracts.value import Value

REPORT_VERSION = "2"


class Verdict(StrEnum):
    """What an answer is."""

    REFUSED = "refused"
    COMPLIED = "complied"
    DEGENERATE = "degenerate"
    """Empty or gibberish: neither a refusal nor an answer."""
    UNSCORED = "unscored"
    """The judge could not tell (it failed, or nothing was generated)."""


class Rate(Value):
    """A share of scored prompts with its 95 % Wilson interval."""

    hits: int = Field(ge=0)
    num_scored: int = Field(ge=1)
    value: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)
    high: float = Field(ge=0.0, le=1.0)


class PairedDifference(Value):
    """Tuned minus base on the same prompts, with the exact McNemar test."""

    value: float
    low: float
    high: float
    """95 % interval of the paired difference (Newcombe's method 10)."""
    num_pairs: int
    only_base: int
    """Prompts that hit before and not after."""
    only_tuned: int
    """Prompts that hit after and not before."""
    p_value: float = Field(ge=0.0, le=1.0)


class PromptOutcome(Value):
    """One prompt before and after; answers are cut to their first words."""

    prompt_id: str
    category: str
    prompt: str
    base_verdict: Verdict
    tuned_verdict: Verdict
    base_answer: str
    tuned_answer: str


class CategoryRow(Value):
    """One category of a benchmark: hits of scored prompts, before and after."""

    category: str
    base_hits: int
    base_scored: int
    tuned_hits: int
    tuned_scored: int


class SecondOpinion(Value):
    """What another judge makes of the same answers."""

    judge: str
    base: Rate | None = None
    tuned: Rate | None = None
    difference: PairedDifference | None = None
    agreement: Rate | None = None
    """Answers (of both models) on which it and the first judge say the same, of those that both scored."""
    kappa: float | None = None
    """Cohen's kappa: agreement beyond chance; None where one of them always says the same."""
    only_first: int = 0
    """Answers that are hits for the first judge alone ..."""
    only_second: int = 0
    """... and for this one alone."""
    not_run: str | None = None
    """Why there is no opinion (its model is not there, half of its verdicts could not be read)."""


class SafetyBenchmark(Value):
    """A benchmark whose answers are judged refused / complied / degenerate / unscored, base against tuned."""

    name: str
    version: str
    kind: Literal["harmful", "over_refusal"]
    title: str
    num_prompts: int
    is_subset: bool
    """True when only the first part of the set was run."""
    judge: str
    base_verdicts: dict[Verdict, int]
    tuned_verdicts: dict[Verdict, int]
    base: Rate | None
    """`harmful`: share of harmful requests answered; `over_refusal`: share of harmless requests refused."""
    tuned: Rate | None
    difference: PairedDifference | None
    categories: list[CategoryRow]
    examples: list[PromptOutcome]
    source: str = ""
    """Where the prompts come from."""
    licence: str = ""
    second_opinions: list[SecondOpinion] = Field(default_factory=list)


class BenchmarkNotRun(Value):
    """A benchmark that was asked for and has no result."""

    name: str
    reason: str


class UtilityResult(Value):
    """How one model does on the validation file."""

    loss: float
    token_accuracy: float
    num_tokens: int
    exact_match: Rate | None
    """Greedy answers equal to the reference, where the reference answers are short; else None."""


class Utility(Value):
    """The task the tenant fine-tunes for, before and after, on the same rows."""

    source: str
    """Where the rows come from: the validation file, or (and then it says so) the training file, which the tuned
    model has seen."""
    num_rows: int
    base: UtilityResult
    tuned: UtilityResult
    difference: PairedDifference | None
    """Exact match, tuned minus base."""


class TaskBenchmark(Value):
    """A public benchmark of ability, base against tuned on the same rows."""

    name: str
    version: str
    title: str
    metric: str
    num_rows: int
    is_subset: bool
    base: Rate
    tuned: Rate
    difference: PairedDifference
    lenient_base: Rate | None = None
    """By a more generous reading of the same answers (GSM8K: the last number, wherever it stands)."""
    lenient_tuned: Rate | None = None
    lenient_difference: PairedDifference | None = None
    source: str = ""
    licence: str = ""


class Curve(Value):
    """A number over the optimizer steps."""

    name: str
    steps: list[int]
    values: list[float]


class Cost(Value):
    """Where the time went, in seconds."""

    training_seconds: float | None
    evaluation_seconds: float
    base_seconds: float = 0.0
    """Of that for the base's answers; nothing where they were kept from an earlier job."""
    parts: dict[str, float] = Field(default_factory=dict)
    """Seconds of each benchmark and of the task."""

    @property
    def share_of_training(self) -> float | None:
        """Evaluation as a share of training time."""
        return None if not self.training_seconds else self.evaluation_seconds / self.training_seconds


class TrainingSummary(Value):
    """What the training run did."""

    objective: Objective = Field(default_factory=Supervised)
    method: MethodConfig
    ema: Ema | None = None
    merge: MergeConfig | None = None
    num_rows: int
    """Of preferences: pairs."""
    num_steps: int
    num_epochs: int
    trained_tokens: int
    processed_tokens: int
    replayed_tokens: int
    first_loss: float
    last_loss: float
    """Of the first and the last step on the user's rows: the objective's."""
    seconds: float
    counters: dict[str, float]
    """The objective's and the method's own counters at the end: a method that did nothing is visible here."""
    notes: list[str]
    """What a reader must know: a fall-back that was taken, rows that were cut."""


class Provenance(Value):
    """Which things, exactly."""

    base: str
    base_hash: str
    prepared_hash: str
    training_file_sha256: str | None
    """None, like the seed: an adapter that was not trained here."""
    chat_template_sha256: str
    seed: int | None
    versions: dict[str, str]
    adapter_sha256: str | None = None
    """Of the archive that was measured; None in a job's own report, which lies in its archive."""
    continued_from: str | None = None
    """The fine-tuned model or checkpoint that training went on from; measured is the whole update all the same, against
    the base."""
    start_adapter_sha256: str | None = None
    """Of that one's archive."""


class Report(Value):
    """Everything measured about one model: a job's, or an adapter that was made elsewhere."""

    report_version: str = REPORT_VERSION
    job_id: str
    """Of the fine-tuning job, or of the evaluation of an adapter."""
    model: str
    created_at: int
    benchmarks: list[SafetyBenchmark]
    benchmarks_not_run: list[BenchmarkNotRun] = Field(default_factory=list)
    """Never left out silently: a benchmark without a result is not a benchmark without harm."""
    task_benchmarks: list[TaskBenchmark] = Field(default_factory=list)
    utility: Utility | None
    """None: an evaluation of an adapter without a file of the task."""
    training: TrainingSummary | None
    """None: an adapter that was not trained here."""
    provenance: Provenance
    evaluation_seconds: float
    decoding: str
    cost: Cost | None = None
    curves: list[Curve] = Field(default_factory=list)
    """Losses and the method's counters over the steps."""
    data_risk: DataRisk | None = None
    """None: no pre-flight was made."""
    risk_outcome: RiskOutcome | None = None
    gate: GateDecision | None = None
    """None: no gate has decided (the policy has no rule, or the report is only an evaluation)."""
    repair: Repair | None = None
