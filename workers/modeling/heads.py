"""The output head, run only where a token counts.

Legend: N positions, H hidden size, V vocabulary. Logits are W h (and soft-capped where the model says so), with W
of shape [V, H]. With a frozen W the gradient of the cross-entropy with respect to h is (softmax(W h) - onehot) W;
it is computed in the forward pass, piece by piece, so that no N x V tensor outlives its piece.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from workers.modeling.errors import UnsupportedModel

PIECE_LOGITS = 2**24
"""Logits computed at a time (64 MB in float32)."""


class OutputHead(NamedTuple):
    """How a model turns hidden states into logits."""

    weight_VH: torch.Tensor
    soft_cap: float | None = None
    """logits = cap * tanh(raw / cap), as in Gemma 2."""

    @property
    def is_linear(self) -> bool:
        return self.soft_cap is None

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] in float32."""
        raw = F.linear(hidden_NH.to(self.weight_VH.dtype), self.weight_VH).float()
        return raw if self.soft_cap is None else self.soft_cap * torch.tanh(raw / self.soft_cap)


def output_head(model: PreTrainedModel) -> OutputHead:
    """The model's output head.

    Raises:
        UnsupportedModel: The head is no plain bias-free linear layer.
    """
    layer = model.get_output_embeddings()
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    if not isinstance(layer, torch.nn.Linear) or bias is not None:
        raise UnsupportedModel(f"{type(model).__name__}'s output head is no bias-free linear layer.")
    scale = getattr(model.config, "logit_scale", None) or getattr(model.config, "logits_scaling", None)
    if scale not in (None, 1, 1.0):
        raise UnsupportedModel(f"{type(model).__name__} scales its logits by {scale}, which is not supported.")
    return OutputHead(layer.weight, getattr(model.config, "final_logit_softcapping", None))


class TokenLoss(NamedTuple):
    """Cross-entropy over positions."""

    losses_N: torch.Tensor
    """Of each position, in nats; float32, differentiable with respect to the hidden states."""
    num_correct: int
    """Positions where the most likely token is the target."""

    @property
    def loss_sum(self) -> torch.Tensor:
        return self.losses_N.sum()


def cross_entropy(head: OutputHead, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> TokenLoss:
    """Cross-entropy of `targets_N` under the head, position by position.

    The caller divides their (weighted) sum by the number of trained tokens of the whole optimizer step, which makes
    gradient accumulation independent of how rows fall into micro-batches.
    """
    if head.weight_VH.requires_grad:
        logits = head.logits(hidden_NH)
        correct = int((logits.argmax(-1) == targets_N).sum())
        return TokenLoss(F.cross_entropy(logits, targets_N, reduction="none"), correct)
    losses, correct_tensor = _FrozenHeadCrossEntropy.apply(hidden_NH, targets_N, head)  # type: ignore[no-untyped-call]
    return TokenLoss(losses, int(correct_tensor))


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, targets_N: torch.Tensor, head: OutputHead
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight = head.weight_VH
        needs_gradient = hidden_NH.requires_grad
        gradient = torch.empty_like(hidden_NH) if needs_gradient else None
        losses = torch.empty(hidden_NH.shape[0], dtype=torch.float32, device=hidden_NH.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_NH.device)
        step = max(1, PIECE_LOGITS // weight.shape[0])
        for start in range(0, hidden_NH.shape[0], step):
            piece, target = hidden_NH[start : start + step], targets_N[start : start + step]
            logits = head.logits(piece)
            log_z = torch.logsumexp(logits, dim=-1)
            losses[start : start + step] = log_z - logits.gather(1, target[:, None]).squeeze(1)
            correct += (logits.argmax(-1) == target).sum()
            if gradient is not None:
                slope = (logits - log_z[:, None]).exp_()
                slope[torch.arange(len(target), device=target.device), target] -= 1.0
                if head.soft_cap is not None:
                    slope *= 1.0 - (logits / head.soft_cap) ** 2
                gradient[start : start + step] = slope.to(weight.dtype) @ weight
        ctx.gradient = gradient
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        # Scaled in float32: in bf16 the factor itself, one over the step's tokens, would be rounded for all of them.
        return ((ctx.gradient.float() * grads[0][:, None]).to(ctx.gradient.dtype), None, None)


def gram_matrix(head: OutputHead) -> torch.Tensor:
    """G = W^T W in float64, shape [H, H]: squared logit errors without logits (see finetuning.losses).

    Raises:
        UnsupportedModel: The head is not linear in the hidden state (soft-capped logits).
    """
    if not head.is_linear:
        raise UnsupportedModel("A soft-capped head has no Gram form.")
    weight = head.weight_VH.detach()
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for piece in torch.split(weight, 16_384):
        part = piece.double()
        gram += part.T @ part
    return gram
