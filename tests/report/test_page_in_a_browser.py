"""The report in a headless Chromium: widths, pictures, dark mode, print, scripts and network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import EVIL, MOCO, changed, make_evil_runs, make_runs, write_args, write_records

from solo_hardneg.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)
TITLE = "A title that stays"

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver")


@pytest.fixture(scope="module")  # a browser needs real pictures
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on usual runs, one with long names, and hostile ones."""
    root = tmp_path_factory.mktemp("report")
    folders = make_runs(root / "runs")
    for folder in folders[1:3] + folders[4:6]:  # fewer seeds are faster
        shutil.rmtree(folder)
    long = {"keep": {"band": [0.123456, 0.987654], "from_epoch": 17}, "fill": "older"}
    args = changed(MOCO, negatives=long, data__dataset="w" * 80, max_epochs=90)
    write_records(write_args(root / "runs" / "mocov2_banded" / ("a" * 90), args), args)
    make_evil_runs(root / "runs" / "evil", [*EVIL[:4], EVIL[-1]])
    return write_report([root / "runs"], root / "report", title=TITLE).html


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def visit(
    browser: Any, page: Path, width: int = 1280, scheme: str = "light", media: str = ""
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())


def requests(browser: Any) -> list[str]:
    """The addresses requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def table_boxes(browser: Any) -> list[Any]:
    """Inner and outer width, overflow and tab index of the box around each table."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth,"
        " getComputedStyle(e).overflowX, e.tabIndex])"
    )


def luminance(browser: Any, colour: str, element: str = "html") -> float:
    """Luminance of a colour of an element, from 0 (black) to 1 (white)."""
    script = f"return getComputedStyle(document.querySelector('{element}')).{colour}"
    numbers = browser.execute_script(script).partition("(")[2].strip(")").split(",")
    return sum(float(number) for number in numbers[:3]) / 3 / 255


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_overflows_the_page(browser: Any, page: Path, width: int) -> None:
    visit(browser, page, width)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e =>"
        " !e.closest('.scroll') && !e.closest('pre') && e.getBoundingClientRect().right >"
        " innerWidth + 1).map(e => e.tagName + ': ' + e.textContent.slice(0, 60))"
    )
    assert outside == []
    found = table_boxes(browser)
    assert all(overflow == "auto" and tab == 0 for _, _, overflow, tab in found)
    assert any(inner > outer for inner, outer, *_ in found) or width > 320


def test_pictures_load_without_errors_and_network(browser: Any, page: Path) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # drops entries of other pages
    visit(browser, page)
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])"
    )
    assert len(pictures) > 10
    assert all(complete and width and alt for complete, width, alt in pictures)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    addresses = requests(browser)
    assert page.as_uri() in addresses
    assert all(address.startswith(("file://", "data:")) for address in addresses)


def test_dark_mode_and_print(browser: Any, page: Path) -> None:
    """The page follows the system, and figures stay on white."""
    visit(browser, page)
    assert luminance(browser, "backgroundColor") > 0.9 > 0.3 > luminance(browser, "color")
    visit(browser, page, scheme="dark")
    assert luminance(browser, "backgroundColor") < 0.2 < 0.7 < luminance(browser, "color")
    assert luminance(browser, "backgroundColor", "img") == 1
    # A4 is about 720 CSS pixels wide, and paper doesn't scroll.
    visit(browser, page, 720, scheme="dark", media="print")
    assert luminance(browser, "backgroundColor") > 0.9
    assert all(inner <= outer for inner, outer, *_ in table_boxes(browser))


def test_no_script_of_the_runs_runs(browser: Any, page: Path, tmp_path: Path) -> None:
    """The page's policy and its escaping each prevent it."""
    text = page.read_text(encoding="utf-8")
    policy = "Content-Security-Policy"
    assert policy in text
    open_page = tmp_path / "open.html"
    open_page.write_text(text.replace(policy, "x"), encoding="utf-8")
    requests(browser)
    visit(browser, open_page)
    assert browser.title == TITLE
    count = "return document.querySelectorAll('script, svg, iframe, [onload], [onerror]').length"
    assert browser.execute_script(count) == 0
    assert EVIL[0] in browser.execute_script("return document.body.innerText"), "shown as text"
    assert all(address.startswith(("file://", "data:")) for address in requests(browser))

    unescaped = text.replace("</body>", f"{EVIL[0]}</body>")
    open_page.write_text(unescaped, encoding="utf-8")
    visit(browser, open_page)
    assert browser.title == TITLE
    open_page.write_text(unescaped.replace(policy, "x"), encoding="utf-8")
    visit(browser, open_page)
    assert browser.title == "run", "without both it runs, so this test can fail"
