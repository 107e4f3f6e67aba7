"""Opening an image: every reader of this package gets the same 8-bit RGB pixels for a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from solo_hardneg.errors import DataError

_AT_ONCE = 1024
_TIFF = (".tif", ".tiff")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_KNOWN_RANGE = ("PNG", "PPM")  # of their pixels, where Pillow reads 16 bits as mode I


def read_image(image: Any) -> Image.Image:
    """An array (H, W, 3) of uint8, or a file, as a PIL image in RGB.

    Raises:
        DataError: the file can't be used; it is named, also through a worker process.
    """
    return Image.fromarray(image) if isinstance(image, np.ndarray) else open_rgb(image)


def open_rgb(file: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Opens an image upright and in 8-bit RGB, as DALI's decoder does.

    The orientation that a camera has stored in the EXIF data is applied, 16-bit grey is scaled to 8
    bits (PIL alone would clip it), transparency is dropped, and of an animation the first frame is
    taken.

    Args:
        file: a path, or an open file.
        name: what errors call it; the path by default.

    Raises:
        DataError: the file can't be decoded, or holds pixels of an unknown range, such as floats.
    """
    name = str(file) if name is None else name
    try:
        with Image.open(file) as image:
            _check_mode(image, name)
            image.load()
            with contextlib.suppress(Exception):  # of damaged EXIF data; the pixels are whole
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        text = f"{name}: this image is too large ({error})"
        raise DataError(f"{text}. Make it smaller, or remove the file.") from error
    except Exception as error:  # decoders raise whatever they like
        text = f"{name}: this image can't be read ({error}). Replace or remove the file."
        raise DataError(text) from error


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
    # convert() alone would copy what is RGB already
    return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")


def check_tiffs(files: Sequence[str | Path]) -> None:
    """Refuses TIFF files of floats, which DALI would clip without a word; reads only headers.

    Raises:
        DataError: there is such a file, or one without a readable header.
    """
    tiffs = [file for file in files if str(file).lower().endswith(_TIFF)]
    _try_all(_check_header, tiffs)


def _check_header(file: str | Path) -> None:
    try:
        with Image.open(file) as image:
            _check_mode(image, str(file))
    except OSError as error:
        text = f"{file}: this image can't be read ({error}). Replace or remove the file."
        raise DataError(text) from error


def check_images(files: Sequence[str | Path]) -> None:
    """Opens images one by one: names the one at fault once a decoder that names none has failed.

    Raises:
        DataError: the first that can't be opened.
    """
    _try_all(open_rgb, files)


def _try_all(function: Callable[..., object], files: Sequence[str | Path]) -> None:
    with ThreadPoolExecutor() as pool:  # decoders release Python's lock
        for start in range(0, len(files), _AT_ONCE):  # not millions of tasks before the first error
            for _ in pool.map(function, files[start : start + _AT_ONCE]):
                pass
