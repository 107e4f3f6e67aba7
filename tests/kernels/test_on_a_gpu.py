"""The kernels on a GPU at the sizes of training, equal to dense."""

from __future__ import annotations

import pytest
import torch
from kernel_helpers import BANDS, Outcome, moco_loss, named
from on_device import DEVICE, REHEARSAL, needs_device

pytestmark = needs_device
SMALL = [(1, 37, 3), (17, 555, 20)]
SIZES = SMALL if REHEARSAL else [(256, 65536, 128), (64, 16384, 256), (1, 37, 3), (77, 1111, 20)]
BACKENDS = ["chunked"] if REHEARSAL else ["chunked", "triton"]


def gpu_loss(backend: str, config: dict, shape: tuple[int, int, int]) -> Outcome:
    generator = torch.Generator(DEVICE).manual_seed(0)
    number, width, dimensions = shape
    tensors = [
        torch.randn(rows, dimensions, device=DEVICE, generator=generator)
        for rows in (number, number, width)
    ]
    query, key, queue = (torch.nn.functional.normalize(tensor, dim=1) for tensor in tensors)
    return moco_loss(backend, config, (query, key, queue.T))


@named({name: config for name, config in BANDS.items() if name not in ("holes", "one")})
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_dense(backend: str, config: dict) -> None:
    for shape in SIZES:
        gpu_loss(backend, config, shape).assert_equal(gpu_loss("dense", config, shape))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixing(backend: str) -> None:
    hardest, shape = (64, (8, 512, 16)) if REHEARSAL else (1024, (64, 16384, 128))
    config = {"mix": {"hardest": hardest, "pairs": 64, "queries": 8}, "reweight": 0.2}
    gpu_loss(backend, config, shape).assert_equal(gpu_loss("dense", config, shape))


def test_bit_equal_each_time() -> None:
    first, again = (gpu_loss(BACKENDS[-1], BANDS["hardest"], SIZES[0]) for _ in range(2))
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.grads[0], again.grads[0])
