"""The wheel and an editable install hold everything that the commands need.

Each is tried in a new environment and from an empty folder, where it can't borrow files from the
checkout or from the environment of the tests. Only the dependencies are shared with the latter, so
nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from integration_helpers import PROJECT, run_python

import solo_hardneg

SOURCES = ("configs", "hydra_plugins", "solo_hardneg")

# Runs in the new environment: prints where files are found, and a composed config.
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
    env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    run_python("-m", "pip", *arguments, cwd=cwd, env=env).ok()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, because building leaves folders behind."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, copy / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, copy)
    # A module beside the packages, which must stay out of the wheel.
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
    """The Python of a new environment that sees the running one's packages after its own."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # As plain paths, whose .pth files are ignored: one of them may be our editable install.
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return folder / "bin" / "python"


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; old = set(sys.modules); import solo_hardneg; print(set(sys.modules) - old)"
    assert run_python("-c", code, cwd=tmp_path).ok().out == "{'solo_hardneg'}\n"


@pytest.mark.full
def test_the_wheel_holds_configs_and_plugin_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (("configs", "solo_hardneg/configs"), ("solo_hardneg", "solo_hardneg")):
        for file in (PROJECT / folder).rglob("*.yaml" if folder == "configs" else "*.py"):
            assert f"{place}/{file.relative_to(PROJECT / folder).as_posix()}" in names
    assert "solo_hardneg/configs/negatives/hardest_5.yaml" in names
    assert "hydra_plugins/solo_hardneg_searchpath.py" in names
    assert "hydra_plugins/__init__.py" not in names
    assert "solo_hardneg/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "hydra_plugins",
        "solo_hardneg",
        f"solo_hardneg-{solo_hardneg.__version__}.dist-info",
    }


@pytest.mark.full
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_an_installation_works_from_an_empty_folder(
    editable: bool, request: pytest.FixtureRequest, sources: Path, python: Path, tmp_path: Path
) -> None:
    what = ("--editable", sources) if editable else (request.getfixturevalue("wheel"),)
    options = ("--no-deps", "--no-build-isolation", "--ignore-installed")
    pip("--python", python, "install", *options, *what, cwd=tmp_path)
    (place,) = [sources] if editable else python.parents[1].glob("lib/python*/site-packages")
    empty = tmp_path / "empty"
    empty.mkdir()
    answer = run_python("-c", PROBE, cwd=empty, python=python).ok().out
    assert json.loads(answer.splitlines()[-1]) == {
        "package": str(place / "solo_hardneg" / "__init__.py"),
        "plugin": str(place / "hydra_plugins" / "solo_hardneg_searchpath.py"),
        "discovered": True,
        "band": [0.95, 1.0],
        "queue_size": 512,  # the digits' suggestion
        "versions": [solo_hardneg.__version__] * 2,
    }
    command = python.parent / "solo-hardneg"
    listed = run_python(command, "policies", cwd=empty, python=python).ok().out
    assert "drop_hardest_0.1_same_class" in listed
