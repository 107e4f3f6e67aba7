"""The style of figures, and how they are drawn and saved."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from solo_hardneg.study import plots
from solo_hardneg.study.plots import Line


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plots.style():
        yield


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_is_visible_on_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in plots.COLOURS:
        assert contrast(colour, "#ffffff") >= 3, colour
    assert contrast(plots.INK, "#ffffff") >= 7


def test_32_lines_have_different_styles() -> None:
    styles = [tuple(style.values()) for style in plots.line_styles(32)]
    assert len(set(styles)) == 32
    assert len(plots.line_styles(40)) == 40


def test_the_style_is_independent_of_the_users_and_leaves_it_alone() -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 99, "font.family": "serif"}):
        with plots.style():
            assert matplotlib.rcParams["lines.linewidth"] == 1.8
            assert matplotlib.rcParams["figure.facecolor"] == "none"
        assert matplotlib.rcParams["lines.linewidth"] == 99
    assert dict(matplotlib.rcParams) == before


def test_a_line_skips_unknown_values() -> None:
    axes = plots.new_figure("A title", "x", "y")[1]
    nan = np.nan
    line = Line(np.arange(4), np.array([1, nan, 3, 4]), np.array([0.5, 0.5, nan, 1]))
    plots.draw_line(axes, line, "it", plots.line_styles(1)[0])
    assert axes.lines[0].get_xdata().tolist() == [0, 2, 3]
    shade = axes.collections[0].get_paths()[0].get_extents()
    assert (shade.x0, shade.x1, shade.y0, shade.y1) == (0, 3, 0.5, 5)


def test_an_svg_is_well_formed_and_reproducible() -> None:
    texts = []
    for _ in range(2):
        figure, axes = plots.new_figure("A title", "x", "y")
        axes.plot([1, 3, 2], label="one")
        plots.legend_below(figure, axes)
        texts.append(plots.to_svg(figure))
    assert texts[0] == texts[1]
    assert ET.fromstring(texts[0]).tag == "{http://www.w3.org/2000/svg}svg"
    # Letters are paths, and there is no date.
    assert not re.search(r"<text|20\d\d-\d\d|Matplotlib", texts[0])
    assert "fill: none" in texts[0] or "opacity: 0" in texts[0]


def test_a_png_is_opaque_and_white() -> None:
    figure, _ = plots.new_figure("A title", "x", "y")
    plots.save_png(figure, out := io.BytesIO(), 50)
    pixels = np.asarray(Image.open(out).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert pixels[0, 0].tolist() == [255] * 4


@pytest.mark.full
def test_drawing_needs_no_window() -> None:
    """In its own process, since other tests may have imported pyplot."""
    program = (
        "import sys; from solo_hardneg.study import figures, plots;"
        "f, a = plots.new_figure('t', 'x', 'y'); plots.to_svg(f);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stdout.split()[-1] == "False", out.stderr


def test_dollars_and_long_names_are_plain_text() -> None:
    figure, axes = plots.new_figure("costs $5 and $6 " * 8, "x" * 90, "word " * 20)
    axes.plot([1, 2], label="$x_{1$ " + "word " * 30)
    axes.plot([2, 2], label="other")
    plots.legend_below(figure, axes)
    assert plots.to_svg(figure)  # "$x_{1$" isn't valid mathematics
    lines = [line for text in figure.legends[0].get_texts() for line in text.get_text().split("\n")]
    assert len(lines) == 3
    assert all(len(line) <= 60 for line in lines)
