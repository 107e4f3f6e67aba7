"""The steps of a recipe as DALI does them, on a whole batch.

They are those of torchvision but for small things, as in solo-learn: the colours are changed in one
order, always, and the blur is DALI's. Imports DALI, so it is imported on demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nvidia.dali import fn as dali_fn
from nvidia.dali import pipeline_def, types

from solo_hardneg.resident.draw import RADIUS
from solo_hardneg.resident.recipe import Range, Recipe

fn: Any = dali_fn  # its functions are made when it is imported, beyond what types can tell
_KERNELS = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}


@pipeline_def(enable_conditionals=True)
def views_pipeline(files: Iterable[Any], recipes: Sequence[Recipe], on_gpu: bool) -> Any:
    """A pipeline from file names to the views, one per recipe, and the indexes of a batch.

    Args:
        files: yields a batch's file names, as arrays of bytes, and indexes, as arrays (1,).
        recipes: what to do, once per view.
        on_gpu: decode and do it there. The indexes come out there, too.
    """
    names, indexes = fn.external_source(
        files, num_outputs=2, cycle="raise", batch=True, dtype=[types.UINT8, types.INT64]
    )
    encoded = fn.io.file.read(names)
    device = "mixed" if on_gpu else "cpu"
    images = fn.decoders.image(encoded, device=device, output_type=types.RGB)
    views = [make_view(images, recipe) for recipe in recipes]
    return (*views, indexes.gpu() if on_gpu else indexes)


def make_view(images: Any, recipe: Recipe) -> Any:
    """Decoded images (H, W, 3) to normalized ones (3, size, size)."""
    kernel, size = _KERNELS[recipe.kernel], recipe.size
    if recipe.scale is not None:
        images = fn.random_resized_crop(
            images,
            size=[size, size],
            random_area=list(recipe.scale),
            random_aspect_ratio=list(recipe.ratio),
            interp_type=kernel,
        )
    else:
        images = fn.resize(images, resize_shorter=float(size), interp_type=kernel)
    for step in (_jittered, _greyed, _blurred, _solarised, _equalised):
        images = step(images, recipe)
    where = {"crop": [size, size]} if recipe.cut else {}
    return fn.crop_mirror_normalize(
        images,
        mirror=fn.random.coin_flip(probability=recipe.flip),
        mean=[255 * value for value in recipe.mean],
        std=[255 * value for value in recipe.std],
        dtype=types.FLOAT,
        output_layout="CHW",
        **where,
    )


def _happens(probability: float) -> Any:
    return fn.random.coin_flip(probability=probability, dtype=types.BOOL)


def _jittered(images: Any, recipe: Recipe) -> Any:
    if recipe.jitter == 0:
        return images
    brightness, contrast, saturation, hue = recipe.factors
    done = fn.cast(_happens(recipe.jitter), dtype=types.FLOAT)
    return fn.color_twist(
        images,
        brightness=1 + done * (_between(brightness or (1, 1)) - 1),
        contrast=1 + done * (_between(contrast or (1, 1)) - 1),
        saturation=1 + done * (_between(saturation or (1, 1)) - 1),
        hue=done * 360 * _between(hue or (0, 0)),  # in degrees, here
    )


def _greyed(images: Any, recipe: Recipe) -> Any:
    if recipe.grey == 0:
        return images
    done = fn.cast(_happens(recipe.grey), dtype=types.FLOAT)
    return fn.saturation(images, saturation=1 - done)


def _blurred(images: Any, recipe: Recipe) -> Any:
    if recipe.blur == 0:
        return images
    radius = _between(RADIUS)
    done = _happens(recipe.blur)
    if done:  # noqa: SIM108, DALI turns statements into a choice per image
        out = fn.gaussian_blur(images, sigma=radius)
    else:
        out = images
    return out


def _solarised(images: Any, recipe: Recipe) -> Any:
    if recipe.solarise == 0:
        return images
    done = _happens(recipe.solarise)
    if done:
        bright = images >= 128
        out = fn.cast(bright * (255 - images) + (1 - bright) * images, dtype=types.UINT8)
    else:
        out = images
    return out


def _equalised(images: Any, recipe: Recipe) -> Any:
    if recipe.equalise == 0:
        return images
    done = _happens(recipe.equalise)
    if done:  # noqa: SIM108, as above
        out = _equalise(images)
    else:
        out = images
    return out


_equalise = getattr(fn, "equalize", None) or fn.experimental.equalize


def _between(bounds: Range) -> Any:
    if bounds[0] == bounds[1]:
        return bounds[0]
    return fn.random.uniform(range=[float(bound) for bound in bounds])
