"""Plain LoRA fine-tuning: no hook is filled in.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
Idea: the reference every method is compared with; it forgets its safety.
"""

from typing import ClassVar

from workers.finetuning.method import Method


class PlainFineTuning(Method):
    """The loop as it is."""

    name: ClassVar[str] = "none"
