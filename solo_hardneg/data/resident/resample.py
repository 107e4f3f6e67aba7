"""Crop, resize, flip and blur: two batched matrix products per image.

Separable resampling of an image X is ``R · X · Cᵀ``, with one matrix for rows and one for columns.
The matrices here have PIL's weights, so the views equal PIL's, except that PIL rounds to whole grey
levels after each pass (``Pillow/src/libImaging/Resample.c`` and ``BoxBlur.c``).
"""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 3  # of the box blur with which PIL approximates a Gaussian
_REACH = 10  # pixels beyond the edge that a box can cover


def crop_matrix(
    start: Tensor,
    length: Tensor,
    pixels: int,
    out: int,
    kernel: str = "bicubic",
    flipped: Tensor | None = None,
    part: tuple[int, int] | None = None,
) -> Tensor:
    """The matrix that crops, resizes and flips one axis: (B, out, pixels), rows summing to 1.

    Shrinking widens the kernel. The kernel ends at the crop's edges.

    Args:
        start: (B,) first pixel of each crop.
        length: (B,) pixels of each crop.
        pixels: Pixels of the image along this axis.
        out: Pixels to which the crop is resized.
        kernel: ``bicubic`` (a = -0.5) or ``bilinear``.
        flipped: (B,) bool, whether to flip the axis.
        part: (first, number) of the resized pixels to keep, before flipping; by default all.
    """
    first, number = part or (0, out)
    places = torch.arange(number, device=start.device)
    if flipped is not None:
        places = torch.where(flipped[:, None], number - 1 - places, places)
    scale = (length / out)[:, None]
    centres = (places + (first + 0.5)) * scale  # (B, number), counted from the crop's start
    wide = 1 / scale.clamp(min=1)
    # distance of each pixel's middle from each centre, in units of the kernel's width
    middles = torch.arange(pixels, device=start.device) + 0.5 - start[:, None]  # (B, pixels)
    distance = (wide * middles)[:, None, :] - (wide * centres)[:, :, None]
    inside = (middles > 0) & (middles < length[:, None])
    weights = _KERNELS[kernel](distance.abs_()).mul_(inside[:, None, :])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, a = -0.5, at distances ``x`` >= 0."""
    near = x.mul(1.5).sub_(2.5).mul_(x).mul_(x).add_(1)
    x = x.clamp(max=2)  # where the kernel ends at 0
    far = x.mul(-0.5).add_(2.5).mul_(x).sub_(4).mul_(x).add_(2)
    return torch.where(x < 1, near, far)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp_(min=0)


_KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear}


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Applies one matrix per axis, columns first and clamping after each, as PIL does.

    Args:
        images: (B, C, H, W) grey levels, 0 to 255.
        rows: (B, h, H).
        columns: (B, w, W).

    Returns:
        (B, C, h, w).
    """
    number, channels, height, width = images.shape
    across = images.reshape(number, channels * height, width).bmm(columns.transpose(1, 2))
    across = across.clamp_(0, 255).view(number, channels, height, -1)
    return torch.matmul(rows[:, None], across).clamp_(0, 255)


def blur_matrix(radius: Tensor, pixels: int) -> Tensor:
    """PIL's Gaussian blur of one axis: (B, pixels, pixels), rows summing to 1.

    Args:
        radius: (B,) standard deviations, in pixels, up to 5.
        pixels: Pixels along this axis.
    """
    once = box_matrix(box_radius(radius), pixels)
    several = once
    for _ in range(PASSES - 1):
        several = several.bmm(once)
    return several


def box_matrix(box: Tensor, pixels: int) -> Tensor:
    """One pass of a box blur, (B, pixels, pixels); the edge pixels are repeated outwards.

    Args:
        box: (B,) radii in pixels, up to 9; fractions weigh the pixels at the box's ends.
        pixels: Pixels along this axis.
    """
    reach = torch.arange(-_REACH, _REACH + pixels, device=box.device)
    from_pixel = reach - torch.arange(pixels, device=box.device)[:, None]
    covered = (box[:, None, None] + 1 - from_pixel.abs()).clamp_(0, 1)
    covered = covered.div_((2 * box + 1)[:, None, None])
    once = covered[:, :, _REACH:-_REACH].clone()
    once[:, :, 0] += covered[:, :, :_REACH].sum(dim=2)
    once[:, :, -1] += covered[:, :, -_REACH:].sum(dim=2)
    return once


def box_radius(radius: Tensor) -> Tensor:
    """The radius of a box whose three passes have a Gaussian's variance.

    Gwosdek, Grewenig, Bruhn, Weickert 2011, "Theoretical foundations of Gaussian convolution by
    extended box filtering", equations 7, 11 and 14.
    """
    variance = radius.square() / PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1).square()))
    return whole + part
