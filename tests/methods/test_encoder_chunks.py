"""A batch that is encoded in chunks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from solo_hardneg.errors import ConfigError
from solo_hardneg.methods import OUR_METHODS
from solo_hardneg.methods.encoder_chunks import ChunkedEncoder, chunk_encoder
from solo_hardneg.methods.simclr import WarnOfFewNegatives

Maker = Callable[..., Any]
KEY = "performance.encoder_chunk"


def encoder(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 6, 3), *layers, nn.ReLU(), nn.Conv2d(6, 4, 3)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def gradients(backbone: nn.Module, encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Of a loss in which every image's features meet every other's."""
    torch.manual_seed(2)  # for dropout
    features = encode(images())
    (features @ features.T).exp().sum().backward()
    return [parameter.grad for parameter in backbone.parameters()]


@pytest.mark.parametrize("chunk", [1, 3, 12])
def test_gradient_is_that_of_the_whole_batch(chunk: int) -> None:
    whole, chunked = encoder(), encoder()
    chunk_encoder(chunked, chunk)
    assert chunked.state_dict().keys() == whole.state_dict().keys()
    torch.testing.assert_close(
        gradients(chunked, chunked), gradients(whole, whole), rtol=1e-9, atol=1e-9
    )


def test_loss_and_gradient_of_a_step(model: Maker, batch: Maker) -> None:
    whole, chunked = (model(method="simclr_sscl", negatives={}).double() for _ in range(2))
    chunk_encoder(chunked.backbone, 2)
    indexes, views, targets = batch()
    for ours in (whole, chunked):
        ours.training_step([indexes, [view.double() for view in views], targets], 0).backward()
    assert chunked.losses == pytest.approx(whole.losses, rel=1e-9)
    for one, other in zip(chunked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)


def test_batch_norm_sees_each_chunk_once_and_dropout_draws_once() -> None:
    by_hand, chunked = (encoder(nn.BatchNorm2d(6), nn.Dropout(0.3)) for _ in range(2))
    chunk_encoder(chunked, 4)
    expected = gradients(by_hand, lambda x: torch.cat([by_hand(part) for part in x.split(4)]))
    torch.testing.assert_close(gradients(chunked, chunked), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(chunked.state_dict(), by_hand.state_dict(), rtol=1e-12, atol=1e-12)
    assert chunked[1].num_batches_tracked == 3
    assert chunked[1].momentum == 0.1
    with torch.no_grad():
        torch.testing.assert_close(chunked.eval()(images(6)), by_hand.eval()(images(6)))


def test_only_a_chunks_activations_are_kept() -> None:
    def saved_bytes(backbone: nn.Module) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(images())
        return sum(sizes)

    chunked, largest = encoder(), []
    chunk_encoder(chunked, 3)
    chunked[0].register_forward_hook(lambda _, __, output: largest.append(len(output)))
    assert saved_bytes(chunked) == images().nbytes < saved_bytes(encoder())
    assert max(largest) == 3
    assert type(copy.deepcopy(chunked)).__name__ == "Sequential"
    assert copy.deepcopy(chunked).chunk == 3


def test_config_sets_the_chunk(config: Maker) -> None:
    for method in ("simclr_banded", "simclr_sscl"):
        cfg = config(f"++{KEY}=2", method=method, negatives={})
        assert isinstance(OUR_METHODS[method](cfg).backbone, ChunkedEncoder)
        cfg = config(f"++{KEY}=null", method=method, negatives={})
        assert not isinstance(OUR_METHODS[method](cfg).backbone, ChunkedEncoder)


@pytest.mark.parametrize(
    ("method", "chunk", "message"),
    [
        ("simclr_banded", "3", r"chunk=3: must divide optimizer.batch_size=4.* is 2"),
        ("simclr_banded", "8", r"chunk=8: must divide optimizer.batch_size=4.* is 4"),
        ("simclr_sscl", "0", r"chunk=0: must be at least 1"),
        ("simclr_sscl", "all", r"chunk=all: must be a whole number"),
        ("mocov2_banded", "2", r"chunk=2: is for SimCLR's methods; mocov2_banded has .* in the qu"),
    ],
)
def test_impossible_chunks_are_refused(
    config: Maker, method: str, chunk: str, message: str
) -> None:
    cfg = config(f"++{KEY}={chunk}", method=method, negatives={})
    with pytest.raises(ConfigError, match=message):
        OUR_METHODS[method].add_and_assert_specific_cfg(cfg)


def test_single_images_are_refused_under_batch_norm() -> None:
    with pytest.raises(ConfigError, match="chunk=1: leaves batch normalization a single image"):
        chunk_encoder(encoder(nn.BatchNorm2d(6)), 1)


def test_accumulated_gradients_add_no_negatives(model: Maker) -> None:
    trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=4)
    for method in ("simclr", "simclr_banded"):
        with pytest.warns(UserWarning, match="accumulate_grad_batches=4: adds no negatives"):
            WarnOfFewNegatives().on_fit_start(trainer, model(method=method))
