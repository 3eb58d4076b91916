"""Attention as plain products, against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from phirt_train import compiled_attention
from phirt_train.compiled_attention import attend, attend_by_products


@pytest.mark.parametrize("length", [1, 5, 8, 21])
@pytest.mark.parametrize("packed", [False, True])
def test_products_are_what_torch_has(monkeypatch: pytest.MonkeyPatch, length: int, packed: bool) -> None:
    monkeypatch.setattr(compiled_attention, "_QUERIES", 8)
    generator = torch.Generator().manual_seed(2)
    mine = [torch.randn(2, 3, length, 16, generator=generator).requires_grad_() for _ in range(3)]
    theirs = [one.detach().clone().requires_grad_() for one in mine]
    mask = None
    if packed:
        documents = torch.arange(length) // 4
        mask = (documents[:, None] == documents) & torch.ones(length, length, dtype=torch.bool).tril()
        mask = mask[None, None].expand(2, 1, length, length)
    found = attend(*mine, mask)
    wanted = F.scaled_dot_product_attention(*theirs, attn_mask=mask, is_causal=mask is None)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.sin().sum().backward()
    wanted.sin().sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_decoder_that_attends_this_way_gives_the_same_logits(toy: Any) -> None:
    model, plain = toy.toy_decoder(), toy.toy_decoder()
    attend_by_products(model)
    token_ids = torch.arange(40).view(2, 20)
    torch.testing.assert_close(model(token_ids), plain(token_ids), rtol=1e-5, atol=1e-5)
