"""What all tests share: the two tiers, no network, and a checkout of solo-learn."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network_guard
import pytest
from hypothesis import settings
from integration_helpers import GUARD, NO_CHECKOUT, PROJECT, solo_learn_checkout

WORDNET_BESIDE = PROJECT.parent / "shared" / "data" / "nltk_data"

# How long an example takes says more of the machine than of the code.
settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=100, deadline=None, print_blob=True)
settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked 'full', too")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("hypothesis_profile", None) is None:
        settings.load_profile("full" if config.getoption("--all") else "ci")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [GUARD, os.environ.get("PYTHONPATH")])
    )  # child processes have no network either
    os.environ["HF_HUB_OFFLINE"] = "1"  # timm's pretrained weights are refused without a question
    network_guard.install()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have runs ignore it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the full tier, and begins with the files that take longest."""
    longest = {"host", "test_quickstart.py"}  # run last, they would leave one process idle
    items.sort(key=lambda item: longest.isdisjoint((item.path.parent.name, item.path.name)))
    if not config.getoption("--all"):
        full = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With ``--durations``: what share of the time each folder takes."""
    if config.getoption("durations") is None:
        return
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "nodeid") and hasattr(report, "duration"):
                seconds[Path(report.nodeid.partition("::")[0]).parent.as_posix()] += report.duration
    total = seconds.total() or 1
    terminalreporter.section(f"{total:.0f} s of tests, by folder")
    for folder, spent in seconds.most_common():
        terminalreporter.write_line(f"{spent:7.1f} s {spent / total:6.1%}  {folder}")


@pytest.fixture(scope="session")
def network_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guard of each process writes who asked for the network."""
    log = tmp_path_factory.mktemp("network") / "log.txt"
    os.environ[network_guard.LOG] = str(log)
    return log


@pytest.fixture(autouse=True)
def no_network(network_log: Path) -> Iterator[None]:
    """Fails a test that asks the network, in this process or a child, even if it goes on then."""
    yield
    if network_log.exists():
        asked = network_log.read_text()
        network_log.unlink()
        pytest.fail(f"a test asked the network:\n{asked}")


@pytest.fixture(scope="session")
def solo_learn() -> Path:
    """The checkout of solo-learn, which no test changes: outputs go to temporary folders."""
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip(NO_CHECKOUT)
    return checkout


@pytest.fixture(scope="session")
def wordnet() -> Iterator[Any]:
    """nltk's reader of WordNet: from $NLTK_DATA, nltk's own places, or beside the project."""
    import nltk

    with pytest.MonkeyPatch.context() as patch:
        if WORDNET_BESIDE.is_dir():
            patch.setattr(nltk.data, "path", [*nltk.data.path, str(WORDNET_BESIDE)])
        from solo_hardneg.data import wordnet as ours
        from solo_hardneg.errors import HardnegError

        try:
            reader = ours._reader()
        except HardnegError as error:
            pytest.skip(str(error))
        yield reader


@pytest.fixture
def depth_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the user's cache; nothing is known from earlier tests."""
    from solo_hardneg.data import wordnet as ours

    folder = tmp_path / "cache" / "solo-hardneg"
    monkeypatch.setattr(ours, "cache_folder", lambda: folder)
    monkeypatch.setattr(ours, "_known", {})
    return folder
