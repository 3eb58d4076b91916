"""Cross-entropy in chunks against torch's in one piece; how much memory it takes; layers that run again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from phirt_train import chunked_loss
from phirt_train.activation_checkpointing import checkpoint_layers
from phirt_train.chunked_loss import IGNORED, chunked_cross_entropy, chunked_log_probabilities


def example(
    tokens: int, vocabulary: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, 24, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 24, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.3] = IGNORED
    return hidden, weight, targets


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "_SCORES_AT_ONCE", 700)
    monkeypatch.setattr(chunked_loss, "_LEAST_TOKENS", 3)


@pytest.mark.parametrize("tokens", [0, 1, 7, 40])
def test_loss_and_gradients_are_those_of_one_piece_in_float64(tokens: int) -> None:
    hidden, weight, targets = example(tokens, 50)
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    wanted = F.cross_entropy(exact[0] @ exact[1].T, targets, ignore_index=IGNORED, reduction="sum")
    found = chunked_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    (3 * wanted).backward()
    (3 * found).backward()
    for one, other in ((hidden, exact[0]), (weight, exact[1])):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    hidden, weight, targets = example(20, 50)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    chunked_cross_entropy(hidden, weight, targets).backward()
    assert (hidden.grad is None) == (frozen == "hidden") and (weight.grad is None) == (frozen == "weight")


def test_in_bfloat16_it_is_as_near_as_one_piece_is() -> None:
    hidden, weight, targets = example(64, 80)
    exact = F.cross_entropy(
        hidden.double() @ weight.double().T, targets, ignore_index=IGNORED, reduction="sum"
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_cross_entropy(hidden, weight, targets)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=5e-3)
    found.backward()
    by_chunks = hidden.grad
    hidden.grad = weight.grad = None
    F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED, reduction="sum").backward()
    assert by_chunks.dtype == torch.float32
    torch.testing.assert_close(by_chunks, hidden.grad, rtol=0.05, atol=0.05)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return result


def test_the_scores_of_all_tokens_are_never_there() -> None:
    hidden, weight, targets = example(400, 100)
    with _Largest() as seen:
        chunked_cross_entropy(hidden, weight, targets).backward()
        chunked_log_probabilities(hidden, weight, targets).sum().backward()
    assert seen.elements == 400 * 24 < 400 * 100  # the hidden states themselves


def test_log_probabilities_are_those_of_one_piece_with_any_weights() -> None:
    hidden, weight, targets = example(40, 50)
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    scores = (exact[0] @ exact[1].T).log_softmax(-1)
    learnt = targets != IGNORED
    wanted = torch.where(learnt, scores.gather(1, targets.clamp(min=0)[:, None])[:, 0], 0.0)
    found = chunked_log_probabilities(hidden, weight, targets)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    shares = torch.linspace(-1, 1, 40, dtype=torch.float64)
    (wanted * shares).sum().backward()
    (found * shares).sum().backward()
    for one, other in ((hidden, exact[0]), (weight, exact[1])):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def decoder_losses(toy: Any, again: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss and gradients of a decoder, and what its forward pass keeps for them, in bytes."""
    model = toy.toy_decoder()
    if again:
        checkpoint_layers(model)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    token_ids = torch.arange(64).view(2, 32) % 40
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(token_ids).float().square().mean()
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept


def test_layers_that_run_again_give_the_same_gradients_and_keep_less(toy: Any) -> None:
    (loss, gradients, kept), (again, same, less) = (decoder_losses(toy, one) for one in (False, True))
    assert torch.equal(loss, again) and gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-6, atol=1e-8)
    assert less < 0.5 * kept


def test_the_names_of_weights_stay_where_layers_run_again(toy: Any) -> None:
    model, plain = toy.toy_decoder(), toy.toy_decoder()
    checkpoint_layers(model)
    assert list(model.state_dict()) == list(plain.state_dict())
