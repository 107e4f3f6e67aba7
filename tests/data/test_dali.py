"""Messages for DALI's errors, and when images are opened to find the damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from solo_hardneg.data import dali, images

DAMAGED = """Critical error in pipeline:
Error in CPU operator `nvidia.dali.fn.decoders.image`, encountered:
[dali/operators/image.cc:3] Could not decode sample #2
Stacktrace (2 entries):
[frame 0]: /lib/libdali_operators.so(+0x5f) CUDA runtime API error
"""
MEMORY = """Critical error in pipeline:
Error in MIXED operator `nvidia.dali.fn.decoders.image`, encountered:
CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory
"""
OTHER = "Error in thread 3: Assert on 'size > 0' failed"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Five images, the last of which is damaged."""
    found = [tmp_path / f"{number}.png" for number in range(5)]
    for file in found[:4]:
        Image.new("RGB", (2, 2)).save(file)
    found[4].write_bytes(b"x")
    return list(map(str, found))


def test_the_damaged_image_is_named(files: list[str]) -> None:
    assert f"{files[4]}: this image can't be read" in str(
        dali.explain(RuntimeError(DAMAGED), files)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MEMORY, "out of memory). If memory is short, lower optimizer.batch_size."),
        (OTHER, "'size > 0' failed)."),
    ],
)
def test_no_image_is_opened_for_other_errors(
    files: list[str], monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setattr(images, "open_rgb", None)
    error = str(dali.explain(RuntimeError(text), files))
    assert error.startswith("data.format=dali: DALI stopped (")
    assert error.endswith(said)


def test_a_limited_number_of_images_is_opened(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "_MOST", 4)
    error = str(dali.explain(RuntimeError(DAMAGED), files))
    assert error.endswith("PIL can read the first 4 images: use data.format=image_folder.")
    assert "[frame" not in error
