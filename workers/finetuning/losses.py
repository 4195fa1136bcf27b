"""Losses on hidden states, as plain functions.

Legend: N replayed positions, H hidden size, V vocabulary.
"""

import torch
from torch.nn import functional as F

from workers.modeling.heads import OutputHead


def squared_logit_error_gram(states_NH: torch.Tensor, teacher_NH: torch.Tensor, gram_HH: torch.Tensor) -> torch.Tensor:
    """Sum over positions of |W h - W h*|^2, without logits: (h - h*)^T G (h - h*) with G = W^T W.

    Exact for a frozen, bias-free head without soft-cap. Everything in float32; scalar.
    """
    error = states_NH.float() - teacher_NH.float()
    return ((error @ gram_HH) * error).sum()


def squared_logit_error_exact(states_NH: torch.Tensor, teacher_NH: torch.Tensor, head: OutputHead) -> torch.Tensor:
    """The same sum from the logits themselves, for heads that have no Gram form. N x V numbers in memory."""
    with torch.no_grad():
        teacher_logits = head.logits(teacher_NH)
    return F.mse_loss(head.logits(states_NH), teacher_logits, reduction="sum")
