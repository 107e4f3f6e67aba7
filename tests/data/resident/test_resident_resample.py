"""Matrices for crops and blurs, against PIL."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageFilter
from resident_helpers import from_pil, pictures, to_pil
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from solo_hardneg.data.resident.resample import (
    PASSES,
    blur_matrix,
    box_matrix,
    box_radius,
    crop_matrix,
    resample,
)

# PIL rounds after each of two passes, and the absolute weights of the kernel sum to more than 1.
LEVELS = 1.25


def random_boxes(number: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(number, 4, generator=generator)
    h, w = (1 + share[:, 0] * height).floor(), (1 + share[:, 1] * width).floor()
    return torch.stack(
        [(share[:, 2] * (height - h + 1)).floor(), (share[:, 3] * (width - w + 1)).floor(), h, w]
    )


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width", "out"), [(40, 56, 17), (9, 7, 24)])
def test_crops_equal_pils(kernel: str, height: int, width: int, out: int) -> None:
    images = pictures(30, height, width)
    boxes = random_boxes(30, height, width)
    top, left, h, w = boxes
    flipped = torch.arange(30) % 2 == 0
    rows = crop_matrix(top, h, height, out, kernel)
    columns = crop_matrix(left, w, width, out, kernel, flipped)
    actual = resample(images.float(), rows, columns)
    mode = InterpolationMode(kernel)
    for image, box, flip, found in zip(
        images, boxes.T.int().tolist(), flipped, actual, strict=True
    ):
        expected = F.resized_crop(to_pil(image), *box, [out, out], mode)
        expected = F.hflip(expected) if flip else expected
        assert (found - from_pil(expected)).abs().max() <= LEVELS, box


def test_the_kernel_ends_at_the_crops_edges() -> None:
    matrix = crop_matrix(torch.tensor([5.0]), torch.tensor([7.0]), 32, 16)
    assert matrix[0, :, :5].abs().max() == 0
    assert matrix[0, :, 12:].abs().max() == 0
    torch.testing.assert_close(matrix.sum(dim=2), torch.ones(1, 16))


def test_resizing_to_the_same_size_changes_nothing() -> None:
    matrix = crop_matrix(torch.tensor([0.0]), torch.tensor([32.0]), 32, 32)
    torch.testing.assert_close(matrix[0], torch.eye(32))


def test_a_part_of_the_resized_axis_is_cut_out() -> None:
    start, length = torch.tensor([3.0]), torch.tensor([20.0])
    whole = crop_matrix(start, length, 32, 24)
    part = crop_matrix(start, length, 32, 24, part=(5, 10))
    torch.testing.assert_close(part, whole[:, 5:15])
    mirrored = crop_matrix(start, length, 32, 24, "bicubic", torch.tensor([True]), (5, 10))
    torch.testing.assert_close(mirrored, part.flip(1))


@pytest.mark.parametrize(("height", "width"), [(24, 41), (4, 3)])
def test_blurs_equal_pils(height: int, width: int) -> None:
    images = pictures(40, height, width)
    radius = torch.linspace(0.1, 2.0, 40)
    actual = resample(images.float(), blur_matrix(radius, height), blur_matrix(radius, width))
    for image, r, found in zip(images, radius.tolist(), actual, strict=True):
        expected = from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(r)))
        # PIL rounds six times, by half a level at most
        assert (found - expected).abs().max() <= 3, r
        assert (found - expected).abs().mean() <= (1.1 if r < 0.5 else 0.6), r


@pytest.mark.parametrize("pixels", [32, 4])
def test_blurs_with_pils_rounding_equal_pils_exactly(pixels: int) -> None:
    images = pictures(40, pixels, pixels)
    # Below 2, where the box is 4 pixels wide and halves may be rounded either way.
    radius = torch.linspace(0.1, 1.99, 40, dtype=torch.float64)
    box = box_matrix(box_radius(radius), pixels)[:, None]
    actual = images.double()
    for _ in range(PASSES):
        actual = (actual @ box.transpose(2, 3) + 0.5).floor()
    for _ in range(PASSES):
        actual = (box @ actual + 0.5).floor()
    expected = [
        from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(r)))
        for image, r in zip(images, radius.tolist(), strict=True)
    ]
    assert torch.equal(actual, torch.stack(expected).double())


def test_blur_keeps_a_constant_image() -> None:
    images = torch.full((3, 3, 20, 20), 255.0)
    matrix = blur_matrix(torch.tensor([0.1, 1.0, 2.0]), 20)
    torch.testing.assert_close(resample(images, matrix, matrix), images)


def test_overshoot_is_clamped() -> None:
    board = Image.new("RGB", (8, 8))
    board.paste((255, 255, 255), (0, 0, 4, 8))
    image = from_pil(board)[None]
    matrix = crop_matrix(torch.tensor([0.0]), torch.tensor([8.0]), 8, 23)
    actual = resample(image, matrix, matrix)
    assert actual.min() >= 0
    assert actual.max() <= 255
