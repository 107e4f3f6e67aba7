"""Batches of views, made on the device of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solo_hardneg.data.resident import colour
from solo_hardneg.data.resident.params import ViewParams, batch_generator, draw_params
from solo_hardneg.data.resident.recipe import Recipe
from solo_hardneg.data.resident.resample import blur_matrix, crop_matrix, resample


class ResidentViews:
    """Makes all views of a batch of a dataset's images.

    Args:
        images: (N, 3, H, W) uint8, on the device of the views.
        recipes: One per view.
        seed: Seed of the run.
    """

    def __init__(self, images: Tensor, recipes: Sequence[Recipe], seed: int) -> None:
        self.images, self.recipes, self.seed = images, list(recipes), seed

    @torch.no_grad()
    def __call__(self, indexes: Tensor, rank: int, epoch: int, batch: int) -> list[Tensor]:
        """The views of one batch, which depend on nothing but the arguments and the seed.

        Args:
            indexes: (B,) dataset indexes, on the device of the images.
            rank: Rank of the process.
            epoch: Epoch.
            batch: Number of the batch within the epoch.

        Returns:
            Per recipe (B, 3, h, w) float32, normalized.
        """
        generator = batch_generator(self.seed, rank, epoch, batch)
        images = self.images.index_select(0, indexes).float()
        number, _, height, width = images.shape
        return [
            make_view(images, recipe, draw_params(recipe, number, height, width, generator))
            for recipe in self.recipes
        ]


def make_view(images: Tensor, recipe: Recipe, params: ViewParams) -> Tensor:
    """One view of each image, with the hosts' steps in their order.

    The flip is part of the crop: it commutes with all other steps.

    Args:
        images: (B, 3, H, W) grey levels, as floats.
        recipe: The steps.
        params: Their random parameters, on the CPU.

    Returns:
        (B, 3, h, w) normalized.
    """
    view = _crop(images, recipe, params)
    _jitter(view, recipe, params)
    _apply_where(view, params.grey, colour.to_grey)
    _apply_where(view, params.blur, _blur, params.radius)
    _apply_where(view, params.solarise, colour.solarise)
    _apply_where(view, params.equalise, colour.equalise)
    return colour.normalise(view, recipe.mean, recipe.std)


def _crop(images: Tensor, recipe: Recipe, params: ViewParams) -> Tensor:
    top, left, h, w = _send(params.crop.T.float(), images.device)
    flip = _send(params.flip, images.device) if recipe.flip else None
    high, wide = images.shape[2:]
    height, width = resized_shape(recipe, high, wide)
    kept_rows = _centre(height, recipe.size) if recipe.cut else None
    kept_columns = _centre(width, recipe.size) if recipe.cut else None
    rows = crop_matrix(top, h, high, height, recipe.kernel, part=kept_rows)
    columns = crop_matrix(left, w, wide, width, recipe.kernel, flip, part=kept_columns)
    return resample(images, rows, columns)


def resized_shape(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    """Height and width to which an image or its random crop is resized, before a centre crop."""
    if recipe.scale is not None:
        return recipe.size, recipe.size
    short, long = sorted((height, width))
    longer = int(recipe.size * long / short)  # as torchvision's Resize rounds it
    return (recipe.size, longer) if height <= width else (longer, recipe.size)


def _centre(pixels: int, size: int) -> tuple[int, int]:
    return round((pixels - size) / 2), size


def _jitter(view: Tensor, recipe: Recipe, params: ViewParams) -> None:
    """Applies the jitter's four steps in place, to each image in its own order."""
    enabled = torch.tensor([limits is not None for limits in recipe.factors])
    for kinds in params.order.unbind(dim=1):
        factors = params.factors.gather(1, kinds[:, None])[:, 0]
        applied, is_hue = params.jitter & enabled[kinds], kinds == colour.HUE
        _apply_where(view, applied & ~is_hue, colour.adjust_linear, kinds, factors)
        _apply_where(view, applied & is_hue, colour.adjust_hue, factors)


def _blur(images: Tensor, radius: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows = blur_matrix(radius, height)
    return resample(images, rows, rows if height == width else blur_matrix(radius, width))


def _apply_where(view: Tensor, mask: Tensor, step: Callable[..., Tensor], *params: Tensor) -> None:
    """Applies a step to some of the images, in place; the others cost nothing.

    Args:
        view: (B, 3, h, w).
        mask: (B,) bool, the images to change, on the CPU.
        step: Takes these images and their parameters.
        params: (B,) each, on the CPU.
    """
    chosen = mask.nonzero()[:, 0]
    if len(chosen):
        on_device = [_send(values[chosen], view.device) for values in params]
        chosen = _send(chosen, view.device)
        view.index_copy_(0, chosen, step(view.index_select(0, chosen), *on_device))


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to a device; from pinned memory, so that the CPU doesn't wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
