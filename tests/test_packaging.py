"""The wheel and an editable install both bring everything that the commands need.

Each is tried in a virtual environment of its own, from an empty folder, so that neither the
checkout nor the environment that runs these tests can lend what is missing. The dependencies are
those of the running interpreter: nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import PROJECT, environment, run_python

import solo_hardneg

pytestmark = pytest.mark.full

SOURCES = ("configs", "hydra_plugins", "solo_hardneg")
FILES = ("pyproject.toml", "README.md", "LICENSE")

# Run inside the new environment: where things are found, and what Hydra makes of them.
PROBE = """
import importlib.metadata, json
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
import solo_hardneg, hydra_plugins.solo_hardneg_searchpath as plugin

found = [p.__module__ for p in Plugins.instance().discover(SearchPathPlugin)]
with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
    cfg = compose("mocov2_banded", ["negatives=hardest_5", "data=digits"])
print(json.dumps({
    "package": solo_hardneg.__file__,
    "plugin": plugin.__file__,
    "discovered": "hydra_plugins.solo_hardneg_searchpath" in found,
    "band": list(cfg.negatives.keep.band),
    "queue_size": cfg.method_kwargs.queue_size,
    "versions": [solo_hardneg.__version__, importlib.metadata.version("solo-hardneg")],
}))
"""


def pip(*arguments: object, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)],
        cwd=cwd,
        env=environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INDEX="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from: building leaves folders behind."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, copy / folder, ignore=ignored)
    for name in FILES:
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, copy)
    # A stray test module beside the packages: it must stay out of the wheel.
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, sources, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A new environment that sees the running one's packages, after its own."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # As plain paths: the .pth files that lie there, our own editable install's among them, don't
    # count.
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return folder / "bin" / "python"


def install(python: Path, *what: object) -> None:
    options = ["install", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    pip("--python", python, *options, *what, cwd=python.parent)


def probe(python: Path, folder: Path) -> dict[str, Any]:
    """What the new environment finds, from an empty folder."""
    folder.mkdir()
    answer = run_python("-c", PROBE, cwd=folder, python=python).ok().out
    return json.loads(answer.splitlines()[-1])


def check(python: Path, tmp_path: Path, place: Path) -> None:
    found = probe(python, tmp_path / "empty")
    assert Path(found["package"]) == place / "solo_hardneg" / "__init__.py"
    assert Path(found["plugin"]) == place / "hydra_plugins" / "solo_hardneg_searchpath.py"
    assert found["discovered"]
    assert found["band"] == [0.95, 1.0]
    assert found["queue_size"] == 512  # the digits' suggestion
    assert found["versions"] == [solo_hardneg.__version__] * 2

    command = python.parent / "solo-hardneg"
    listed = run_python(command, "policies", cwd=tmp_path / "empty", python=python).ok().out
    assert "drop_hardest_0.1_same_class" in listed
    assert "takes away all negatives but those of a band" in listed


def test_the_wheel_holds_configs_and_plugin_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (PROJECT / "configs").rglob("*.yaml"):
        inside = file.relative_to(PROJECT / "configs").as_posix()
        assert f"solo_hardneg/configs/{inside}" in names
    assert "solo_hardneg/configs/negatives/hardest_5.yaml" in names
    for file in (PROJECT / "solo_hardneg").rglob("*.py"):
        assert file.relative_to(PROJECT).as_posix() in names
    assert "hydra_plugins/solo_hardneg_searchpath.py" in names
    assert "hydra_plugins/__init__.py" not in names
    assert "solo_hardneg/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "hydra_plugins",
        "solo_hardneg",
        f"solo_hardneg-{solo_hardneg.__version__}.dist-info",
    }


def test_the_wheel_works_from_an_empty_folder(wheel: Path, python: Path, tmp_path: Path) -> None:
    install(python, wheel)
    (place,) = python.parents[1].glob("lib/python*/site-packages")
    check(python, tmp_path, place)


def test_an_editable_install_works_from_an_empty_folder(
    sources: Path, python: Path, tmp_path: Path
) -> None:
    install(python, "--editable", sources)
    check(python, tmp_path, sources)
