"""All readers decode an image file alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import RAMP, cut, floats, integers, png, sixteen_bits, turned
from PIL import Image
from torchvision.datasets import ImageFolder

from solo_hardneg.data.images import check_images, check_tiffs, open_rgb
from solo_hardneg.data.resident.images import load_images
from solo_hardneg.errors import DataError


def by_pil(file: Path) -> np.ndarray:
    return np.asarray(open_rgb(file))


def resident(file: Path) -> np.ndarray:
    (file.parent / "class").mkdir()
    file.rename(file.parent / "class" / file.name)
    images = load_images(ImageFolder(str(file.parent)), torch.device("cpu"))
    return images[0].permute(1, 2, 0).numpy()


def by_dali(file: Path) -> np.ndarray:
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        content, _ = fn.readers.file(files=[str(file)], labels=[0])
        return fn.decoders.image(content, output_type=types.RGB)  # as in solo-learn

    made = pipeline()
    made.build()
    return np.asarray(made.run()[0].at(0))


FILES = [
    *((sixteen_bits, name) for name in ("grey.png", "grey.tiff", "grey.pgm")),
    *((turned, name) for name in ("turned.png", "turned.tif", "turned.jpg")),
]


@pytest.mark.parametrize(
    ("reader", "write", "name"),
    [
        *((by_pil, *file) for file in FILES),
        *((by_dali, *file) for file in FILES),
        (resident, *FILES[0]),  # uses open_rgb
    ],
)
def test_all_readers_get_the_same_pixels(tmp_path, reader, write, name):
    expected = write(tmp_path / name)
    found = reader(tmp_path / name).astype(int)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= (4 if name.endswith("jpg") else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_other_modes_become_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(RAMP)
    else:
        image = Image.open(png(tmp_path / "a.png")).convert(mode)
    file = tmp_path / ("b.jpg" if mode == "CMYK" else "b.png")
    image.save(file)
    assert open_rgb(file).mode == "RGB"


def test_an_animation_gives_its_first_frame(tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    assert open_rgb(tmp_path / "a.webp").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("write", "kind"), [(floats, "floating-point"), (integers, "32 bits")])
@pytest.mark.parametrize("check", [open_rgb, lambda file: check_tiffs([file])])
def test_pixels_without_a_known_range_are_refused(tmp_path, write, kind, check):
    file = tmp_path / "a.tiff"
    write(file)
    with pytest.raises(DataError, match=f"a.tiff: its pixels are .*{kind}.* to 8 or 16 bits"):
        check(file)


def test_damaged_exif_data_is_ignored(tmp_path):
    file = tmp_path / "a.jpg"
    image = Image.open(png(tmp_path / "a.png"))
    image.save(file, exif=b"Exif\0\0" + b"no TIFF header at all")
    assert open_rgb(file).size == image.size


@pytest.mark.parametrize("damage", ["cut off", "text", "folder"])
def test_an_unreadable_file_is_named(tmp_path, damage):
    file = tmp_path / "a.png"
    if damage == "cut off":
        cut(file)
    elif damage == "folder":
        file.mkdir()
    else:
        file.write_text("not a picture")
    for check in (open_rgb, lambda file: check_images([png(tmp_path / "good.png"), file])):
        with pytest.raises(DataError, match=r"a\.png: this image can't be read .*Replace or remo"):
            check(file)


def test_a_too_large_image_is_refused(tmp_path, monkeypatch):
    file = png(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"a\.png: this image is too large .*Make it smaller"):
        open_rgb(file)


def test_open_files_are_named_in_errors(tmp_path):
    content = io.BytesIO(png(tmp_path / "a.png").read_bytes())
    assert open_rgb(content, "archive: a").size == (40, 40)
    with pytest.raises(DataError, match="archive: a: this image can't be read"):
        open_rgb(io.BytesIO(b""), "archive: a")


def test_solo_learns_h5_images_are_opened_alike(tmp_path):
    """A dictionary stands in for the HDF5 file."""
    from solo_hardneg.data.solo_learn import _OpensRGB

    expected = sixteen_bits(tmp_path / "a.png")
    dataset = _OpensRGB()
    content = np.frombuffer((tmp_path / "a.png").read_bytes(), np.uint8)
    dataset.h5_path, dataset.h5_file = "all.h5", {"n1": {"a": content, "b": content[:60]}}
    assert np.array_equal(np.asarray(dataset._load_img("n1", "a")), expected)
    with pytest.raises(DataError, match="all.h5: n1/b: this image can't be read"):
        dataset._load_img("n1", "b")
