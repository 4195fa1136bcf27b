"""Settings of the safety-preserving methods: one frozen class a method, told apart by `name`.

`GET /v1/safety/methods` publishes these classes' JSON schemas as they are, so a docstring under a field is the
public documentation of that setting. Mathematics and scheduling live in workers/finetuning/methods.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from app.contracts.objectives import ObjectiveName
from app.contracts.value import Value, invalid_combination

Artefact = Literal["memory", "gram", "fisher", "unaligned_twin"]
"""What `models prepare` makes once for a base, and a method may need."""


class MethodSettings(Value):
    """Settings of every method."""

    objectives: ClassVar[tuple[ObjectiveName, ...]] = ("supervised", "dpo")
    """What a method can be combined with: whatever the user's loss is, unless the method is itself a change of it."""


class NoMethod(MethodSettings):
    """Plain LoRA fine-tuning: the reference that every other method is compared with. Keeps no safety."""

    needs: ClassVar[tuple[Artefact, ...]] = ()
    name: Literal["none"] = "none"


class WithMemory(MethodSettings):
    """Settings of every method that draws from the base's safety memory."""

    needs: ClassVar[tuple[Artefact, ...]] = ("memory",)
    memory_size: int = Field(default=512, ge=8, le=100_000)
    """Rows of the base's safety memory to draw from (all of them, where it has fewer)."""
    memory_selection: Literal["random", "low_similarity", "high_similarity", "mixed"] = "random"
    """Which rows, where the memory has more: any, those least or most similar to the upload, or half of each.
    Refusals and harmless rows keep their shares. Similarity is the cosine of centred hidden states at the last token of
    the answer (arXiv 2506.05346), mean over the ten most similar rows of the upload."""


class Replay(WithMemory):
    """Settings of every method that has rows of the safety memory in each step."""

    memory_rows_per_step: int = Field(default=8, ge=1, le=256)
    """Rows of safety memory that are added to every optimizer step."""

    @model_validator(mode="after")
    def _memory_holds_a_step(self) -> Self:
        if self.memory_rows_per_step > self.memory_size:
            raise invalid_combination(
                "memory_rows_per_step",
                f"A step cannot draw {self.memory_rows_per_step} different rows from a memory of {self.memory_size}: "
                "give fewer memory_rows_per_step or a larger memory_size.",
            )
        return self


class AlphaBudget(Value):
    """Lets the trainer find the weight of the replay term: as small as keeps the drift within the budget."""

    budget: float = Field(gt=0.0, le=1000.0)
    """Mean divergence per replayed token that the model may have from the aligned base at the end of the training,
    in the unit of `divergence`: nats for `kl`, squared logits (mean over the vocabulary) for `mse`. It is measured over
    the safety memory after the last step. A run that ends above is corrected by a few steps on memory rows alone, and
    its update is scaled down where they are not enough: the report says so, and what was reached."""


def _kind_of_alpha(value: object) -> str:
    # Without tags a wrong value would be answered with the errors of both kinds.
    return "AlphaBudget" if isinstance(value, dict | AlphaBudget) else "float"


class Der(Replay):
    """Dark Experience Replay (Buzzega et al. 2020): the model's logits on its own safe answers are held where
    the aligned base had them, by a squared error or a KL divergence beside the task's loss."""

    needs: ClassVar[tuple[Artefact, ...]] = ("memory", "gram")
    name: Literal["der"] = "der"
    alpha: Annotated[
        Annotated[float, Field(ge=0.0, le=1000.0), Tag("float")] | Annotated[AlphaBudget, Tag("AlphaBudget")],
        Discriminator(_kind_of_alpha),
    ] = 3.0
    """Weight of the replay term, a mean over the replayed answer tokens; 0 turns replay off. Or a budget: the weight
    is then adjusted at every step so that the drift on the safety memory stays within it."""
    divergence: Literal["mse", "kl"] = "mse"
    """Of logits: squared error, mean over the vocabulary; or KL(aligned || tuned) in nats, which weighs tokens by how
    likely the aligned base finds them."""


class DerPlusPlus(Replay):
    """DER++ (Buzzega et al. 2020): DER, and the cross-entropy of the safe answers on a second, independent draw
    of as many memory rows."""

    needs: ClassVar[tuple[Artefact, ...]] = ("memory", "gram")
    name: Literal["derpp"] = "derpp"
    alpha: float = Field(default=3.0, ge=0.0, le=1000.0)
    """Weight of the squared logit error (mean over the vocabulary and the replayed answer tokens)."""
    beta: float = Field(default=0.5, ge=0.0, le=1000.0)
    """Weight of the cross-entropy on the second draw, a mean over its answer tokens."""


class Ewc(MethodSettings):
    """Elastic Weight Consolidation (Kirkpatrick et al. 2017): weights that the safe answers depend on (by their
    Fisher information) are held by a quadratic spring."""

    needs: ClassVar[tuple[Artefact, ...]] = ("fisher",)
    name: Literal["ewc"] = "ewc"
    strength: float = Field(default=1.0, ge=0.0, le=1e9)
    """Lambda: the penalty is lambda / 2 times the sum over weights of F * (change of the weight)^2, with the Fisher
    information F scaled to a mean of 1 over all weights that adapters change; 0 turns it off."""


class Lwf(MethodSettings):
    """Learning without Forgetting: on the user's own rows, the model's last hidden states (or its softened
    predictions) are held where the aligned base has them. Needs no safety memory."""

    needs: ClassVar[tuple[Artefact, ...]] = ()
    name: Literal["lwf"] = "lwf"
    beta: float = Field(default=100.0, ge=0.0, le=1e6)
    """Weight of the term, a mean over tokens; 0 turns it off. `states`: squared distance, mean over hidden units (the
    paper's beta, of a sum over them, is this one divided by the hidden size); `kl`: nats times temperature squared,
    with a default of 1."""
    divergence: Literal["states", "kl"] = "states"
    """`states`: distance of final hidden states (arXiv 2512.10150); `kl`: of softened predictions (Li & Hoiem 2016)."""
    positions: Literal["all", "answer"] = "all"
    """Tokens of the user's rows that are held: all of them, or those that predict an answer."""
    temperature: float = Field(default=2.0, ge=0.1, le=100.0)
    """Softens the predictions of `kl`; with `states` there is nothing to soften."""

    @model_validator(mode="before")
    @classmethod
    def _nats_weigh_more(cls, given: Any) -> Any:
        is_kl = isinstance(given, Mapping) and given.get("divergence") == "kl"
        return {"beta": 1.0, **given} if is_kl else given

    @model_validator(mode="after")
    def _temperature_has_a_use(self) -> Self:
        if self.divergence == "states" and self.temperature != 2.0:
            what = "temperature belongs to the divergence «kl»: leave it out, for «states» compares no predictions."
            raise invalid_combination("temperature", what)
        return self


class AGem(Replay):
    """A-GEM (Chaudhry et al. 2019): where a step would make the safe answers less likely, the part of its gradient
    that would do so is taken out. The memory rows of a step have a pass of their own."""

    name: Literal["agem"] = "agem"


class SafeGrad(Replay):
    """SafeGrad (arXiv 2508.07172): A-GEM's projection against the gradient of the divergence from the aligned base on
    safe answers, and a pull along that gradient."""

    needs: ClassVar[tuple[Artefact, ...]] = ("memory", "gram")
    name: Literal["safegrad"] = "safegrad"
    rho: float = Field(default=1.0, ge=0.0, le=1000.0)
    """Weight of the pull towards the aligned base. With 0 conflicts are still projected away: only the pull is off."""
    divergence: Literal["kl", "mse"] = "kl"
    """Of the answers' logits: KL(aligned || tuned), or squared error (mean over the vocabulary)."""


class Refresh(Replay):
    """Refresh Learning (Wang et al. 2024): before each DER++ step the current batch is unlearned a little, by a noisy
    ascent along its gradient, so that stale knowledge makes room."""

    needs: ClassVar[tuple[Artefact, ...]] = ("memory", "gram")
    name: Literal["refresh"] = "refresh"
    alpha: float = Field(default=3.0, ge=0.0, le=1000.0)
    """DER++'s weight of the squared logit error."""
    beta: float = Field(default=0.5, ge=0.0, le=1000.0)
    """DER++'s weight of the cross-entropy on the second draw."""
    step_size: float = Field(default=1e-5, ge=0.0, le=1.0)
    """Length of the ascent relative to the length of each parameter tensor; 0 turns it off."""
    noise: float = Field(default=1e-3, ge=0.0, le=1.0)
    """Standard deviation of the ascent's noise, before `step_size`."""
    fisher_damping: float = Field(default=1e-3, ge=0.0, le=1e12)
    """The ascent is divided by 1 + this times the Fisher information of each parameter, in squared gradients of the
    step's loss: these are small numbers, so that only a large value makes a difference."""
    fisher_decay: float = Field(default=1e-5, ge=0.0, lt=1.0)
    """Share of the Fisher information of earlier steps that each step keeps."""


class SafeInstruct(Replay):
    """SafeInstruct (Bianchi et al. 2024): safe answers are trained on beside the user's rows, in every step."""

    name: Literal["safeinstruct"] = "safeinstruct"
    weight: float = Field(default=1.0, ge=0.0, le=1000.0)
    """Weight of the cross-entropy on memory rows, a mean over their answer tokens; 0 turns it off."""


class Lisa(WithMemory):
    """Lisa (Huang et al. 2024): training alternates between safe answers and the user's rows, and each turn is held
    near where the other one ended."""

    name: Literal["lisa"] = "lisa"
    alignment_steps: int = Field(default=1, ge=0, le=10_000)
    """Optimizer steps of a turn on the safety memory; the user's rows of these steps are passed over. The run begins
    with such a turn and has to be longer than it. 0: no turns and no proximal term, which is plain fine-tuning."""
    user_steps: int = Field(default=3, ge=1, le=10_000)
    """Optimizer steps of a turn on the user's rows. (The paper's turns of 100 and 900 steps are for runs of many
    thousand.)"""
    rho: float = Field(default=1.0, ge=0.0, le=1e6)
    """The proximal term is rho / 2 times the squared distance of the adapter's parameters from where the other turn
    ended; 0 leaves the turns alone."""
    proximal_after: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the steps at the beginning that go without the proximal term."""


class ConstrainedSft(MethodSettings):
    """Constrained fine-tuning (Qi et al. 2024): tokens that the tuned model already prefers over the aligned base are
    trained on less, most of all the first ones of an answer, where refusals are decided. Needs no safety memory."""

    needs: ClassVar[tuple[Artefact, ...]] = ()
    objectives: ClassVar[tuple[ObjectiveName, ...]] = ("supervised",)
    name: Literal["constrained_sft"] = "constrained_sft"
    beta_first: float = Field(default=0.5, ge=0.0, le=1000.0)
    """Strength of the constraint on an answer's first token; 0 is none."""
    beta_early: float = Field(default=2.0, ge=0.0, le=1000.0)
    """Strength of the constraint on the tokens after it, as long as they belong to the first `early_tokens`."""
    beta_late: float = Field(default=0.1, ge=0.0, le=1000.0)
    """Strength of the constraint on all later tokens. With all three at 0 this is plain fine-tuning."""
    early_tokens: int = Field(default=5, ge=1, le=10_000)
    """How many tokens of an answer count as its beginning, the first one included."""


class SafeLora(MethodSettings):
    """Safe LoRA (Hsu et al. 2024): after plain training, updates that point away from the direction in which the base
    was aligned are projected onto it."""

    needs: ClassVar[tuple[Artefact, ...]] = ("unaligned_twin",)
    name: Literal["safelora"] = "safelora"
    share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the weights that are projected, those with the lowest cosines; 0 projects none. The paper's threshold is
    one for Llama 2: where alignment was a small change, all cosines are below it, and nothing is left of the task."""
    threshold: float | None = Field(default=None, ge=-1.0, le=1.0)
    """Instead of the share: a weight's update is projected where its cosine with its projection is at most this (the
    paper: 0.35); -1 projects none."""
    num_layers: int | None = Field(default=None, ge=0, le=10_000)
    """Instead of the share: project this many weights (the paper's code: 10)."""
    projection: Literal["paper", "orthogonal"] = "paper"
    """V being what alignment changed in the weight. `paper`: C = V V^T / |V|, which also rescales the update;
    `orthogonal`: the projector onto V's columns, for bases that are aligned here."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        given = [
            name
            for name in ("share", "threshold", "num_layers")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if len(given) > 1:
            raise invalid_combination(
                given[-1],
                f"Weights are chosen by one of share, threshold and num_layers: leave {given[0]} or {given[-1]} out.",
            )
        return self


class MagMax(MethodSettings):
    """MagMax (Marczak et al. 2024): after plain training, every weight takes the larger of two changes, alignment's or
    alignment's and the user's together, both counted from the unaligned base."""

    needs: ClassVar[tuple[Artefact, ...]] = ("unaligned_twin",)
    name: Literal["magmax"] = "magmax"
    scale: float = Field(default=1.0, gt=0.0, le=10.0)
    """Lambda: how much of the merged change is added to the unaligned base."""
    output_rank: Literal[8, 16, 32, 64, 128] = 64
    """Rank of the adapter that is shipped. The merged change has full rank: what this leaves out is in the report."""


MethodConfig = Annotated[
    NoMethod
    | Der
    | DerPlusPlus
    | Ewc
    | Lwf
    | AGem
    | SafeGrad
    | Refresh
    | SafeInstruct
    | Lisa
    | ConstrainedSft
    | SafeLora
    | MagMax,
    Field(discriminator="name"),
]

METHOD_ADAPTER: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)

METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "der": Der,
    "derpp": DerPlusPlus,
    "refresh": Refresh,
    "safegrad": SafeGrad,
    "agem": AGem,
    "safeinstruct": SafeInstruct,
    "lisa": Lisa,
    "lwf": Lwf,
    "ewc": Ewc,
    "constrained_sft": ConstrainedSft,
    "safelora": SafeLora,
    "magmax": MagMax,
    "none": NoMethod,
}
"""Every method by name, in the order in which they are listed to users."""

DEFAULT_METHOD = "der"


def methods_for(objective: ObjectiveName) -> list[str]:
    """Names of the methods that an objective can be combined with."""
    return [name for name, config in METHOD_CONFIGS.items() if objective in config.objectives]
