"""The report in a headless Chromium: widths, pictures, the dark, paper, errors and the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import changed, make_runs, write_args, write_records

from solo_hardneg.analysis.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)
WIDTHS = (320, 768, 1280)

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its driver"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report on runs with long names."""
    root = tmp_path_factory.mktemp("report")
    make_runs(root / "runs")
    long = {"keep": {"band": [0.123456, 0.987654], "from_epoch": 17}, "fill": "older"}
    for folder in (root / "runs" / "mocov2_banded" / ("a" * 90), root / "runs" / "b" / "c"):
        args = changed(json.loads((root / "runs/mocov2_banded/all0/args.json").read_text()))
        args = changed(args, negatives=long, data__dataset="w" * 80, max_epochs=len(folder.name))
        write_records(write_args(folder, args), args)
    return report([root / "runs"], root / "report").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def visit(
    browser: Any, page: str, width: int = 1280, scheme: str = "light", media: str = ""
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wished = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": wished})
    browser.get(page)


def luminance(browser: Any, what: str) -> float:
    """Of a colour of the page's root, from 0 (black) to 1 (white)."""
    script = f"return getComputedStyle(document.documentElement).{what}"
    numbers = browser.execute_script(script).partition("(")[2].strip(")").split(",")
    return sum(float(number) for number in numbers[:3]) / 3 / 255


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_of_the_page(browser: Any, page: str, width: int, scheme: str) -> None:
    visit(browser, page, width, scheme)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e =>"
        " !e.closest('.scroll') && !e.closest('pre') && e.getBoundingClientRect().right >"
        " innerWidth + 1).map(e => e.tagName + ': ' + e.textContent.slice(0, 60))"
    )
    assert outside == []


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_scroll_in_a_box_of_their_own(browser: Any, page: str, width: int) -> None:
    visit(browser, page, width)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth,"
        " getComputedStyle(e).overflowX, e.tabIndex])"
    )
    assert boxes
    assert all(overflow == "auto" and tab == 0 for _, _, overflow, tab in boxes)
    if width == 320:
        assert any(inner > outer for inner, outer, _, _ in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_pictures_are_there(browser: Any, page: str, scheme: str) -> None:
    visit(browser, page, scheme=scheme)
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt, i.currentSrc])"
    )
    assert len(pictures) > 10
    for complete, width, alt, source in pictures:
        assert complete
        assert width > 0
        assert len(alt) > 40
        assert source.startswith("data:image/")


def test_the_dark(browser: Any, page: str) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        visit(browser, page, scheme=scheme)
        sources = browser.execute_script("return [...document.images].map(i => i.currentSrc)")
        ground, ink = (luminance(browser, what) for what in ("backgroundColor", "color"))
        seen[scheme] = (sources, ground, ink)
    light, dark = seen["light"], seen["dark"]
    assert light[1] > 0.9 > 0.3 > light[2]
    assert dark[1] < 0.2 < 0.7 < dark[2]
    assert all(one != other for one, other in zip(light[0], dark[0], strict=True))


def test_paper_is_white_in_the_dark_too(browser: Any, page: str) -> None:
    visit(browser, page, scheme="light")
    light = browser.execute_script("return [...document.images].map(i => i.currentSrc)")
    visit(browser, page, scheme="dark", media="print")
    assert luminance(browser, "backgroundColor") > 0.9
    assert browser.execute_script("return [...document.images].map(i => i.currentSrc)") == light


def test_tables_fit_on_paper(browser: Any, page: str) -> None:
    """An upright page of A4 is some 720 CSS pixels wide, and nobody can scroll it."""
    visit(browser, page, width=720, media="print")
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert boxes
    assert all(inner <= outer for inner, outer in boxes)


def test_no_errors_and_no_network(browser: Any, page: str) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forgets what other pages did
    visit(browser, page)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page in asked
    assert all(address.startswith(("file://", "data:")) for address in asked)


def test_a_script_would_not_run(browser: Any, page: str, tmp_path: Path) -> None:
    """The page's own policy forbids it, should anything ever slip through the escaping."""
    from urllib.parse import unquote, urlparse

    text = Path(unquote(urlparse(page).path)).read_text(encoding="utf-8")
    script = "<script>document.title = 'run'</script></body>"
    (tmp_path / "evil.html").write_text(text.replace("</body>", script), encoding="utf-8")
    visit(browser, (tmp_path / "evil.html").as_uri())
    assert browser.title == "Negatives in 10 runs"
    open_page = text.replace("</body>", script).replace("Content-Security-Policy", "x")
    (tmp_path / "open.html").write_text(open_page, encoding="utf-8")
    visit(browser, (tmp_path / "open.html").as_uri())
    assert browser.title == "run", "without the policy it does run, so this test can fail"
