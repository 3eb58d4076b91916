"""Types by machine: what a CPU without bfloat16 instructions is spared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from phirt_export import precision
from phirt_export.precision import autocast, product_type
from phirt_train.optimizers import HiddenMuon, orthogonalized
from phirt_train.stage import Schedule

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["without bfloat16", "with bfloat16"])
def has_bfloat16(request, monkeypatch) -> bool:
    """A CPU that has, or lacks, instructions for bfloat16."""
    precision._cpu_has_bfloat16.cache_clear()
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, "avx512_bf16": request.param}
    )
    yield request.param
    precision._cpu_has_bfloat16.cache_clear()


def test_products_are_computed_in_what_the_machine_has_instructions_for(has_bfloat16):
    wanted = torch.bfloat16 if has_bfloat16 else torch.float32
    assert product_type(CPU) == wanted
    with autocast(CPU):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == wanted


def iterated(matrix: np.ndarray) -> np.ndarray:
    """Newton-Schulz's polynomial applied to the singular values, in float64."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_orthogonalized_follows_the_polynomial_of_the_singular_values(shape):
    matrix = np.random.default_rng(3).normal(size=shape)
    expected = iterated(matrix)
    found = orthogonalized(torch.from_numpy(matrix).float(), torch.float32)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    rounded = orthogonalized(torch.from_numpy(matrix).float(), torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert 1e-4 < np.abs(rounded.numpy() - expected).max() < 0.1


def test_muon_steps_as_torch_has_it_and_in_float32_where_bfloat16_is_emulated(has_bfloat16):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(16, 24, generator=generator)
    own, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = HiddenMuon([own], Schedule(peak=0.02, weight_decay=0.1))
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    exact, mean = start.double().numpy(), np.zeros((16, 24))
    for _ in range(3):
        gradient = torch.randn(16, 24, generator=generator)
        own.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
        mean = 0.95 * mean + 0.05 * gradient.double().numpy()
        update = iterated(0.05 * gradient.double().numpy() + 0.95 * mean)
        exact = exact * (1 - 0.02 * 0.1) - 0.02 * 0.2 * np.sqrt(24) * update
    np.testing.assert_allclose(own.detach(), theirs.detach(), atol=2e-3)
    error = np.abs(own.detach().numpy() - exact).max()
    assert (error > 1e-5) if has_bfloat16 else (error < 1e-5)
