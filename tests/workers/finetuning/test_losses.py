import pytest
import torch
from torch.nn import functional as F

from workers.finetuning.losses import squared_logit_error_exact, squared_logit_error_gram
from workers.modeling.heads import OutputHead, gram_matrix


class TestSquaredLogitErrorByHand:
    """Two hidden units, a vocabulary of three.

    W = [[1, 0], [1, 1], [0, 2]], so W^T W = [[2, 1], [1, 5]].
    First position: h = (3, 1), h* = (1, 2), error (2, -1); logits move by (2, 1, -2): 4 + 1 + 4 = 9.
    Second position: h = (0, 1), h* = (1, 1), error (-1, 0); logits move by (-1, -1, 0): 1 + 1 = 2.
    """

    HEAD = OutputHead(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    GRAM = torch.tensor([[2.0, 1.0], [1.0, 5.0]])
    STATES = ((3.0, 1.0), (0.0, 1.0))
    TEACHER = torch.tensor([[1.0, 2.0], [1.0, 1.0]])

    def test_gram_form(self) -> None:
        states = torch.tensor(self.STATES, requires_grad=True)
        error = squared_logit_error_gram(states, self.TEACHER, self.GRAM)
        assert error.item() == 11.0
        error.backward()  # type: ignore[no-untyped-call]
        # 2 G e: 2 (2*2 - 1, 2 - 5) = (6, -6), and 2 (-2, -1) = (-4, -2).
        assert states.grad is not None
        assert states.grad.tolist() == [[6.0, -6.0], [-4.0, -2.0]]

    def test_exact_form(self) -> None:
        states = torch.tensor(self.STATES, requires_grad=True)
        error = squared_logit_error_exact(states, self.TEACHER, self.HEAD)
        assert error.item() == 11.0
        error.backward()  # type: ignore[no-untyped-call]
        assert states.grad is not None
        assert states.grad.tolist() == [[6.0, -6.0], [-4.0, -2.0]]


class TestSquaredLogitErrorOnRandomNumbers:
    N, H, V = 13, 24, 301

    def numbers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        states = torch.randn(self.N, self.H, generator=generator, requires_grad=True)
        teacher = states.detach() + 0.1 * torch.randn(self.N, self.H, generator=generator)
        return states, teacher, torch.randn(self.V, self.H, generator=generator)

    def test_the_gram_form_is_the_sum_over_full_logits_with_its_gradient(self) -> None:
        states, teacher, weight = self.numbers()
        literal = F.mse_loss(states @ weight.T, teacher @ weight.T, reduction="sum")
        (expected,) = torch.autograd.grad(literal, states)
        error = squared_logit_error_gram(states, teacher, gram_matrix(OutputHead(weight)).float())
        (gradient,) = torch.autograd.grad(error, states)
        torch.testing.assert_close(error, literal, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)

    def test_the_exact_form_goes_through_the_soft_cap(self) -> None:
        states, teacher, weight = self.numbers()
        cap = 5.0
        literal = ((cap * torch.tanh(states @ weight.T / cap) - cap * torch.tanh(teacher @ weight.T / cap)) ** 2).sum()
        (expected,) = torch.autograd.grad(literal, states)
        error = squared_logit_error_exact(states, teacher, OutputHead(weight, cap))
        (gradient,) = torch.autograd.grad(error, states)
        torch.testing.assert_close(error, literal)
        torch.testing.assert_close(gradient, expected)

    @pytest.mark.parametrize("scale", [0.0, 1e-4])
    def test_states_close_to_the_teachers_give_an_error_close_to_nothing(self, scale: float) -> None:
        _, teacher, weight = self.numbers()
        gram = gram_matrix(OutputHead(weight)).float()
        error = squared_logit_error_gram(teacher + scale, teacher, gram)
        assert error.item() == pytest.approx(scale**2 * self.N * float(gram.sum()), rel=1e-2)
