"""Batches of views, made on the device where the images are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solo_hardneg.resident import colour
from solo_hardneg.resident.draw import Draws, draw, generator_for
from solo_hardneg.resident.recipe import Recipe
from solo_hardneg.resident.resample import blur_matrix, crop_matrix, resample


class ResidentViews:
    """Makes all views of a batch of a dataset's images.

    Args:
        images: (N, 3, H, W) uint8, on the device where the views are wanted.
        recipes: one per view.
        seed: of the run.
    """

    def __init__(self, images: Tensor, recipes: Sequence[Recipe], seed: int) -> None:
        self.images, self.recipes, self.seed = images, list(recipes), seed

    @torch.no_grad()
    def __call__(self, indexes: Tensor, rank: int, epoch: int, batch: int) -> list[Tensor]:
        """The views of one batch.

        Args:
            indexes: (B,) of the images, on their device.
            rank: of the process; each draws its own numbers.
            epoch: whatever it is, the views of a batch depend on it and on nothing before it.
            batch: its number within the epoch.

        Returns:
            per recipe (B, 3, h, w) float32, normalized.
        """
        generator = generator_for(self.seed, rank, epoch, batch)
        images = self.images.index_select(0, indexes).float()
        number, _, height, width = images.shape
        return [
            make_view(images, recipe, draw(recipe, number, height, width, generator))
            for recipe in self.recipes
        ]


def make_view(images: Tensor, recipe: Recipe, draws: Draws) -> Tensor:
    """One view of each image, in the order of the hosts' steps.

    The mirroring is folded into the crop. All other steps treat the pixels alike, or alike in both
    directions, so it makes no difference when it is done.

    Args:
        images: (B, 3, H, W) grey levels, as floats.
        recipe: the steps.
        draws: their random numbers, on the CPU.

    Returns:
        (B, 3, h, w) normalized.
    """
    view = _crop(images, recipe, draws)
    for step in colour.jitter_rounds(draws, tuple(f is not None for f in recipe.factors)):
        _change(view, step.linear, colour.adjust_linear, step.kinds, step.factors)
        _change(view, step.hue, colour.adjust_hue, step.turns)
    _change(view, draws.grey.nonzero()[:, 0], colour.to_grey)
    _change(view, draws.blur.nonzero()[:, 0], _blur, draws.radius[draws.blur])
    _change(view, draws.solarise.nonzero()[:, 0], colour.solarise)
    _change(view, draws.equalise.nonzero()[:, 0], colour.equalise)
    return colour.normalise(view, recipe.mean, recipe.std)


def _crop(images: Tensor, recipe: Recipe, draws: Draws) -> Tensor:
    top, left, h, w = _to(draws.box.T.float(), images.device)
    flip = _to(draws.flip, images.device) if recipe.flip else None
    height, width = resized(recipe, images.shape[2], images.shape[3])
    down = _middle(height, recipe.size) if recipe.cut else None
    across = _middle(width, recipe.size) if recipe.cut else None
    kernel, (high, wide) = recipe.kernel, images.shape[2:]
    rows = crop_matrix(top, h, high, height, kernel, part=down)
    columns = crop_matrix(left, w, wide, width, kernel, flip, part=across)
    return resample(images, rows, columns)


def resized(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    """The size to which an image, or a crop of it, is resized, before any cut."""
    if recipe.scale is not None:
        return recipe.size, recipe.size
    short, long = sorted((height, width))
    longer = int(recipe.size * long / short)  # as torchvision's Resize rounds it
    return (recipe.size, longer) if height <= width else (longer, recipe.size)


def _middle(pixels: int, size: int) -> tuple[int, int]:
    return round((pixels - size) / 2), size


def _blur(images: Tensor, radius: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows = blur_matrix(radius, height)
    return resample(images, rows, rows if height == width else blur_matrix(radius, width))


def _change(view: Tensor, which: Tensor, step: Callable[..., Tensor], *numbers: Tensor) -> None:
    """Does a step to some of the images, in place; the others cost nothing.

    Args:
        view: (B, 3, h, w).
        which: (n,) images, on the CPU.
        step: takes these images and the numbers.
        numbers: (n,) each, on the CPU.
    """
    if len(which):
        which = _to(which, view.device)
        chosen = view.index_select(0, which)
        view.index_copy_(0, which, step(chosen, *(_to(of, view.device) for of in numbers)))


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Without making the CPU wait for the device, as a copy from pageable memory does."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
