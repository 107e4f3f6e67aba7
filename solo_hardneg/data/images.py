"""Opens images: every loader gets the same 8-bit RGB pixels for a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from solo_hardneg.errors import DataError

_TIFF = (".tif", ".tiff")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_KNOWN_RANGE = ("PNG", "PPM")  # formats whose pixels have 16 bits if Pillow reads them as mode I
_CHUNK = 1024  # files per batch of tasks, so that the first error comes soon


def read_image(image: Any) -> Image.Image:
    """A PIL image in RGB of an array (H, W, 3) of uint8, or of a file.

    Raises:
        DataError: The file can't be used; the message names it, also from a worker process.
    """
    return Image.fromarray(image) if isinstance(image, np.ndarray) else open_rgb(image)


def open_rgb(file: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Opens an image upright and in 8-bit RGB, as DALI's decoder does.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits (PIL alone would clip it),
    transparency is dropped, and an animation is reduced to its first frame.

    Args:
        file: Path, or an open file.
        name: Name in error messages; the path by default.

    Raises:
        DataError: The file can't be decoded, or the range of its pixels is unknown (floats).
    """
    name = str(file) if name is None else name
    try:
        with Image.open(file) as image:
            _check_mode(image, name)
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data beside good pixels
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        text = f"{name}: this image is too large ({error})"
        raise DataError(f"{text}. Make it smaller, or remove the file.") from error
    except Exception as error:  # decoders raise exceptions of any kind
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: this image can't be read ({error}). Replace or remove the file.")


def _check_mode(image: Image.Image, name: str) -> None:
    """Raises DataError if the image's pixels may hold more than 16 bits."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _KNOWN_RANGE):
        kind = "floating-point numbers" if image.mode == "F" else "integers of up to 32 bits"
        raise DataError(
            f"{name}: its pixels are {kind}, for which black and white aren't defined. Convert it "
            "to 8 or 16 bits, or remove the file."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    # convert() alone would copy an RGB image
    return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")


def check_tiffs(files: Sequence[str | Path]) -> None:
    """Refuses TIFF files of floats, which DALI would clip silently; reads only headers.

    Raises:
        DataError: A TIFF file holds floats, or has no readable header.
    """
    _try_all(_check_header, [file for file in files if str(file).lower().endswith(_TIFF)])


def _check_header(file: str | Path) -> None:
    try:
        with Image.open(file) as image:
            _check_mode(image, str(file))
    except OSError as error:
        raise _unreadable(str(file), error) from error


def check_images(files: Sequence[str | Path]) -> None:
    """Opens images one by one, to find the one at which a decoder failed.

    Raises:
        DataError: Names the first image that can't be opened.
    """
    _try_all(open_rgb, files)


def _try_all(function: Callable[..., object], files: Sequence[str | Path]) -> None:
    with ThreadPoolExecutor() as pool:  # decoders release Python's lock
        for start in range(0, len(files), _CHUNK):
            for _ in pool.map(function, files[start : start + _CHUNK]):
                pass
