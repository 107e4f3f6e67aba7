"""The report on hostile runs in a headless Chromium: no script of theirs runs, or is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_files import EVIL
from test_untrusted_text import make_runs

from solo_hardneg.analysis.report import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its driver"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_no_script_runs_even_without_the_policy(browser: Any, tmp_path: Path) -> None:
    """The page's policy forbids scripts anyway; here it is taken out, and escaping alone counts."""
    title = "A title that nobody changes"
    page = write([make_runs(tmp_path / "runs")], tmp_path / "out", title=title).html
    text = page.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    bare = tmp_path / "bare.html"
    bare.write_text(text.replace("Content-Security-Policy", "x"), encoding="utf-8")
    browser.get_log("performance")  # forgets what the browser did by itself
    browser.get(bare.as_uri())
    assert browser.title == title
    count = "return document.querySelectorAll('script, svg, iframe, [onload], [onerror]').length"
    assert browser.execute_script(count) == 0
    bodies = browser.execute_script("return document.body.innerText")
    assert EVIL[0] in bodies, "it is told, as a text"
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert all(address.startswith(("file://", "data:")) for address in asked)

    # And one that isn't escaped does run, so that this test can fail.
    open_page = bare.read_text(encoding="utf-8").replace("</body>", f"{EVIL[0]}</body>")
    bare.write_text(open_page, encoding="utf-8")
    browser.get(bare.as_uri())
    assert browser.title == "run"
