"""Writes image files other than 8-bit RGB, and returns their expected pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
TURNED_RIGHT = 6  # a common EXIF orientation


def sixteen_bits(file: Path) -> np.ndarray:
    """Writes a 16-bit grey ramp; returns its 8-bit pixels."""
    if file.suffix == ".pgm":
        file.write_bytes(b"P5 32 32 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(file)
    return np.repeat(np.floor(RAMP / 257 + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def turned(file: Path) -> np.ndarray:
    """Writes an image of 24 x 40 pixels with an EXIF rotation; returns it upright."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20, 0] = pixels[12:, 20:, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = TURNED_RIGHT
    Image.fromarray(pixels).save(file, exif=exif, quality=100, subsampling=0, lossless=True)
    return np.rot90(pixels, -1)


def floats(file: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(file)


def integers(file: Path) -> None:
    Image.fromarray(RAMP.astype(np.int32)).save(file)


def png(file: Path, side: int = 40) -> Path:
    """Writes noise; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(file.name))
    Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
    return file


def cut(file: Path) -> None:
    """Writes the first half of an image."""
    png(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
