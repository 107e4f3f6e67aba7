"""The chunked backend: which kernel it chooses, what it holds in memory, its exponential."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_helpers import moco, unit

from solo_hardneg.kernels import chunked
from solo_hardneg.kernels.interface import Kernel, KernelInput, Ranks
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build

QUERIES, CANDIDATES = 8192, 10_000


@pytest.mark.parametrize(
    ("settings", "kernel"),
    [
        ({}, chunked.EverythingKernel),
        ({"constants": False}, chunked.MaskedKernel),
        ({"hardest": 3}, chunked.MaskedKernel),
        ({"ranks": Ranks(85, 100)}, chunked.SparseKernel),
        ({"ranks": Ranks(85, 95)}, chunked.SparseKernel),
        ({"ranks": Ranks(84, 100)}, chunked.MaskedKernel),
        ({"ranks": Ranks(85, 100, inside=False)}, chunked.MaskedKernel),
        ({"ranks": Ranks(85, 100), "hardest": 3}, chunked.MaskedKernel),
        ({"ranks": Ranks(85, 100), "constants": False}, chunked.MaskedKernel),
    ],
)
def test_only_narrow_bands_are_gathered(settings: dict[str, Any], kernel: type[Kernel]) -> None:
    inputs = KernelInput(unit(4, 5), unit(100, 5), 0.2, **settings)
    assert type(chunked.chunked_kernel(inputs)) is kernel


def zeros(device: str) -> KernelInput:
    query, vectors = (torch.zeros(n, 2, device=device) for n in (QUERIES, CANDIDATES))
    return KernelInput(query, vectors, 0.2)


# The meta device stands for any accelerator.
@pytest.mark.parametrize(("device", "size"), [("cpu", 2**22), ("meta", 2**23)])
def test_block_size_of_the_masked_kernel(device: str, size: int) -> None:
    kernel = chunked.MaskedKernel(zeros(device))
    assert size / 2 < kernel.block * CANDIDATES <= size


@pytest.mark.parametrize(("device", "size"), [("cpu", 2**19), ("meta", 2**23)])
def test_tile_size_of_the_everything_kernel(device: str, size: int) -> None:
    kernel = chunked.EverythingKernel(zeros(device))
    assert size / 2 < kernel.block * kernel.tile <= size


def test_all_similarities_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = torch.Tensor.__matmul__

    def recording(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = real(self, other)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", recording)
    query, key, queue = moco(300, 20_000, 4)
    for config in ({}, {"keep": {"band": [0.95, 1.0]}}, {"drop": {"band": [0.5, 0.6]}}):
        sizes.clear()
        with torch.no_grad():
            mocov2plus_loss_func(query, key, queue, policy=build(config), backend="chunked")
        assert 0 < max(sizes) <= 3 * 2**20 < 300 * 20_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_of_masked_logits_is_0(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, -1.0, -78.0, -79.5, -90.0, -1e9, -math.inf, math.nan], dtype=dtype)
    # More than eight, because PyTorch computes the remainder of vectors of eight separately.
    found = chunked.exp_(torch.cat([logits, logits[:5]]))
    torch.testing.assert_close(found[:3], logits[:3].exp())
    assert (found[3:7] == 0).all()
    assert found[7].isnan()
    assert found[8:].tolist() == found[:5].tolist()
