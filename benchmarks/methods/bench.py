"""One model with one adapter, stepped by the loops of several methods in turn."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.contracts.chat_file import read_rows
from app.contracts.plan import TrainingPlan
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.loop import RunControl, TrainingLoop
from workers.finetuning.memory import SafetyMemory, load_memory
from workers.finetuning.method import MethodContext
from workers.finetuning.methods import build_method
from workers.finetuning.rows import TokenRow, dropout_seed, encode_dataset, memory_indices
from workers.finetuning.run import build_objective
from workers.modeling import adapters
from workers.modeling.heads import output_head
from workers.modeling.loading import LoadedModel, autocast, load
from workers.modeling.packing import packed_attention

NONE, DER = "none", "der"
STEPS_RECORDED = 4


class Step(NamedTuple):
    """What a step of some loop went through the model with."""

    gradient_tokens: int
    """Forward and backward."""
    forward_tokens: int
    """Forward alone."""
    is_memory_turn: bool


class Setting(NamedTuple):
    """What is measured on."""

    base: Path
    data: Path
    num_steps: int
    batch_size: int


class Bench:
    """The model, the rows, and a loop for each method; every loop has an optimizer of its own."""

    def __init__(
        self,
        base: LoadedModel,
        rows: Sequence[TokenRow],
        load_memory: Callable[[PreTrainedModel], SafetyMemory],
        artefacts: Artefacts,
        *,
        batch_size: int,
        micro_batch_tokens: int = TrainingPlan().micro_batch_tokens,
    ) -> None:
        self.artefacts = artefacts
        self.model = base.model
        self.rows = rows
        self.plan = TrainingPlan(batch_size=batch_size, micro_batch_tokens=micro_batch_tokens)
        peft_model = adapters.attach(base.model, self.plan.lora, seed=0)
        self.backbone = Backbone(
            base,
            peft_model,
            output_head(base.model),
            adapters.trainable_parameters(peft_model),
            tokens=self.plan.micro_batch_tokens,
            scaling=self.plan.lora.scaling,
        )
        self._load_memory = load_memory
        self._memory: SafetyMemory | None = None
        self._gradient_tokens = self._forward_tokens = 0
        self.model.get_input_embeddings().register_forward_pre_hook(self._count)

    @classmethod
    def of(cls, setting: Setting) -> "Bench":
        """On a prepared base and the rows of a chat file."""
        artefacts = Artefacts(setting.base)
        loaded = load(artefacts.model_dir)
        num_rows = setting.num_steps * setting.batch_size
        chat_rows = [row for _, row in islice(read_rows(setting.data), num_rows)]
        if len(chat_rows) < num_rows:
            # In a second epoch methods that keep something of the first are cheaper than a job of one epoch is.
            raise SystemExit(
                f"{setting.data.name} has {len(chat_rows)} rows and {num_rows} are needed: lower --rounds."
            )
        rows = encode_dataset(loaded.codec, chat_rows, max_tokens=2048).rows

        def memory(model: PreTrainedModel) -> SafetyMemory:
            return load_memory(artefacts.memory_file, artefacts.teacher_file, model)

        return cls(loaded, rows, memory, artefacts, batch_size=setting.batch_size)

    @property
    def memory(self) -> SafetyMemory:
        """The base's, loaded once for all loops; the adapter is at its start when the first asks for it."""
        if self._memory is None:
            self._memory = self._load_memory(self.model)
        return self._memory

    def loop_of(self, parts: dict[str, Any]) -> TrainingLoop:
        """A loop with its method prepared. All have to be there before the first step, which moves the adapter."""
        tokens = self.plan.micro_batch_tokens
        plan = TrainingPlan(**parts, batch_size=self.plan.batch_size, micro_batch_tokens=tokens)
        objective, method = build_objective(plan, self.backbone), build_method(plan)
        loop = TrainingLoop(
            backbone=self.backbone,
            objective=objective,
            method=method,
            plan=plan,
            rows=self.rows,
            validation_rows=(),
            checkpoint_dir=Path(tempfile.gettempdir()) / "never-written",
            run_key="benchmark",
            control=RunControl(),
        )
        method.prepare(
            MethodContext(
                self.backbone, self.rows, plan, self.artefacts, lambda: self.memory, loop.num_steps, objective
            )
        )
        method.begin()
        return loop

    @contextmanager
    def training(self, loops: Sequence[TrainingLoop]) -> Iterator[None]:
        """The model as loops have it; steps are made in here."""
        longest = max(len(row.ids) for row in self.rows)
        self.model.train()
        with packed_attention(self.model, max(longest, *(loop.method.longest_row_tokens for loop in loops))):
            yield
        self.model.eval()

    def step(self, loop: TrainingLoop, number: int) -> Step:
        """A loop's own step on its own rows of that number."""
        return self._counted(lambda: loop.step(number, loop.rows_of(number)).trained_tokens == 0, number)

    def plain_step(self, plain: TrainingLoop, der: TrainingLoop, number: int) -> Step:
        """Plain fine-tuning on all of DER's rows as if they were the user's."""
        rows = [replace(row, memory_index=None) for row in der.rows_of(number)]
        return self._counted(lambda: plain.step(number, rows).trained_tokens == 0, number)

    def naive_step(self, der: TrainingLoop, number: int) -> Step:
        """DER as it is usually written: teacher's forward with the adapter off, full logits, mean squared error."""

        def step() -> bool:
            rows = der.rows_of(number)
            der.optimizer.zero_grad()
            user = [row for row in rows if row.memory_index is None]
            replay = [row for row in rows if row.memory_index is not None]
            with autocast(self.model):
                error = F.mse_loss(self._logits(replay), self._teacher_logits(replay))
                loss = F.cross_entropy(self._logits(user), self.backbone.targets(user)) + 3.0 * error
            loss.backward()  # type: ignore[no-untyped-call]
            der.optimizer.step()
            return False

        return self._counted(step, number)

    def teacher_passes(self, loop: TrainingLoop, number: int) -> Step:
        """The forward alone of the rows of `steps_recorded` steps from this one on, as it is made before training:
        with the adapter off, in passes of as many tokens as a forward may have."""
        rows = [row for k in range(self.steps_recorded(loop)) for row in loop.rows_of((number + k) % loop.num_steps)]

        def step() -> bool:
            for _ in self.backbone.teacher_passes(rows, every_position=True):
                pass
            return False

        return self._counted(step, number)

    def steps_recorded(self, loop: TrainingLoop) -> int:
        """How many steps' rows `teacher_passes` takes."""
        return min(STEPS_RECORDED, loop.num_steps)

    def drawn_tokens(self, steps: Sequence[int], rows_per_step: int, *, draw: int = 0) -> float:
        """Tokens of a draw from the memory, on average over steps of these numbers."""
        rows = self.memory.rows
        count = min(rows_per_step, len(rows))
        drawn = [memory_indices(len(rows), count, step, self.plan.seed, draw=draw) for step in steps]
        return sum(len(rows[i].ids) for indices in drawn for i in indices) / len(steps)

    def _counted(self, step: Callable[[], bool], number: int) -> Step:
        torch.manual_seed(dropout_seed(number, self.plan.seed))
        self._gradient_tokens = self._forward_tokens = 0
        is_memory_turn = step()
        return Step(self._gradient_tokens, self._forward_tokens, is_memory_turn)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._gradient_tokens += inputs[0].numel()
        else:
            self._forward_tokens += inputs[0].numel()

    def _teacher_logits(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        with torch.no_grad(), adapters.disabled(self.model):
            return self._logits(rows)

    def _logits(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Logits at every position, then those that predict an answer's token."""
        forward = self.backbone.forward(rows)
        logits = self.backbone.head.logits(forward.hidden_TH)
        places = [start + p for row, start in zip(rows, forward.row_starts, strict=True) for p in row.positions]
        return logits[torch.tensor(places, device=logits.device)]
