"""The Hydra plug-in: silent in foreign programs, and at home in a host's."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import NO_CHECKOUT, PROJECT, run_python, solo_learn_checkout

from solo_hardneg.errors import HostError

PLUGIN = PROJECT / "hydra_plugins" / "solo_hardneg_searchpath.py"

# Both programs below print what they found as one line of JSON, so that the same check can be
# turned on the plug-in as it is and on one that misbehaves.
IMPORTING = """
import json, sys
import hydra
before = set(sys.modules)
import hydra_plugins.solo_hardneg_searchpath as plugin
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
allowed = {"hydra", "hydra_plugins", *sys.stdlib_module_names}
print(json.dumps({"file": plugin.__file__, "foreign": sorted(roots - allowed)}))
"""
PROGRAM = """
import json, sys
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.2", config_path="conf", config_name="config")
def main(cfg):
    plugin = sys.modules["hydra_plugins.solo_hardneg_searchpath"]
    print(json.dumps({
        "file": plugin.__file__,
        "answer": cfg.answer,
        "size": cfg.group.size,
        "providers": [source.provider for source in HydraConfig.get().runtime.config_sources],
        "loaded": sorted(m for m in ("solo_hardneg", "torch", "lightning") if m in sys.modules),
    }))

main()
"""
FOREIGN_CONFIG = {
    "config.yaml": "defaults:\n  - group: small\n  - _self_\nanswer: 42\n",
    "group/small.yaml": "size: 1\n",
}


def write_program(folder: Path) -> Path:
    for name, text in FOREIGN_CONFIG.items():
        file = folder / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return program


def doctored(folder: Path, old: str, new: str) -> dict[str, str]:
    """A changed copy of the plug-in, and the environment in which Hydra finds it before ours."""
    text = PLUGIN.read_text()
    assert old in text
    copy = folder / "elsewhere" / "hydra_plugins" / PLUGIN.name
    copy.parent.mkdir(parents=True)
    copy.write_text(text.replace(old, new, 1))
    return {"PYTHONPATH": str(copy.parents[1])}


def last_line(text: str) -> dict[str, Any]:
    return json.loads(text.strip().splitlines()[-1])


def what_importing_brings(cwd: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    return last_line(run_python("-c", IMPORTING, cwd=cwd, env=env).ok().out)


def what_a_foreign_program_sees(cwd: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    return last_line(run_python(write_program(cwd), cwd=cwd, env=env).ok().out)


# ---------------------------------------------------------------------- in a foreign program


def test_it_imports_only_hydra_and_sys(tmp_path: Path) -> None:
    imports = [n for n in ast.parse(PLUGIN.read_text()).body if isinstance(n, ast.Import)]
    froms = [n for n in ast.parse(PLUGIN.read_text()).body if isinstance(n, ast.ImportFrom)]
    names = [alias.name for n in imports for alias in n.names] + [str(n.module) for n in froms]
    assert {name.partition(".")[0] for name in names} == {"hydra", "sys"}
    assert what_importing_brings(tmp_path)["foreign"] == []


def test_the_import_check_can_fail(tmp_path: Path) -> None:
    env = doctored(tmp_path, "import sys\n", "import sys\nimport solo_hardneg\n")
    found = what_importing_brings(tmp_path, env)
    assert found["file"].startswith(env["PYTHONPATH"])
    assert found["foreign"] == ["solo_hardneg"]


def test_it_is_inert_in_a_foreign_program(tmp_path: Path) -> None:
    found = what_a_foreign_program_sees(tmp_path)
    assert "solo-hardneg" not in found["providers"]
    assert "main" in found["providers"]
    assert found["loaded"] == []
    assert (found["answer"], found["size"]) == (42, 1)


@pytest.mark.full
def test_the_inertness_check_can_fail(tmp_path: Path) -> None:
    # Not told of a host's module but of one that every Hydra program has.
    env = doctored(tmp_path, '"solo.methods"', '"hydra"')
    found = what_a_foreign_program_sees(tmp_path, env)
    assert found["file"].startswith(env["PYTHONPATH"])
    assert "solo-hardneg" in found["providers"]
    assert {"solo_hardneg", "torch"} <= set(found["loaded"])


# ---------------------------------------------------------------------- registration


def test_registering_twice_is_harmless() -> None:
    from solo_hardneg import host, plugin
    from solo_hardneg.methods import OUR_METHODS

    plugin.register()
    once = dict(host.METHODS)
    plugin.register()
    assert once == host.METHODS
    assert OUR_METHODS.items() <= host.METHODS.items()


def test_a_taken_name_is_an_error_that_names_both_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg import host, plugin

    class Foreign:
        pass

    monkeypatch.setitem(host.METHODS, "mocov2_banded", Foreign)
    with pytest.raises(HostError) as error:
        plugin.register()
    assert "'mocov2_banded' is taken" in str(error.value)
    assert f"{Foreign.__module__}.{Foreign.__qualname__}" in str(error.value)
    assert "solo_hardneg.methods.moco.MoCoV2Banded" in str(error.value)
    assert host.METHODS["mocov2_banded"] is Foreign


# ---------------------------------------------------------------------- the choice of a host


@pytest.fixture
def no_solo(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package called solo can be imported, whatever PYTHONPATH the tests run with."""
    for name in [m for m in sys.modules if m.partition(".")[0] == "solo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "solo").is_dir()])


def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg import host

    monkeypatch.setenv(host.VARIABLE, "nonsense")
    with pytest.raises(HostError, match="SOLO_HARDNEG_HOST=nonsense: must be solo or standalone"):
        host.choose()


@pytest.mark.usefixtures("no_solo")
def test_asking_for_solo_without_solo_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg import host

    monkeypatch.setenv(host.VARIABLE, "solo")
    with pytest.raises(HostError, match="=solo: .* put the checkout on PYTHONPATH"):
        host.choose()


@pytest.mark.usefixtures("no_solo")
def test_another_package_called_solo_is_not_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from solo_hardneg import host

    monkeypatch.delenv(host.VARIABLE, raising=False)
    (tmp_path / "solo" / "methods").mkdir(parents=True)
    (tmp_path / "solo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert host.solo_learn_folder() is None
    assert host.choose() == "standalone"

    # The same place with the files that we extend is taken, so the lines above can fail.
    for name in ("methods/mocov2plus.py", "args/pretrain.py"):
        (tmp_path / "solo" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "solo" / name).touch()
    assert host.solo_learn_folder() == tmp_path / "solo"
    assert host.choose() == "solo"


@pytest.mark.full
@pytest.mark.host
def test_standalone_can_be_chosen_inside_a_checkout(tmp_path: Path) -> None:
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip(NO_CHECKOUT)
    program = (
        "import sys; from solo_hardneg import host; "
        "print(host.NAME, host.MoCoV2Plus.__module__, host.solo_learn_folder(), "
        "'solo' in sys.modules)"
    )
    env = {"PYTHONPATH": str(checkout), "SOLO_HARDNEG_HOST": "standalone"}
    name, module, folder, loaded = run_python("-c", program, cwd=tmp_path, env=env).ok().out.split()
    assert name == "standalone"
    assert module.startswith("solo_hardneg.standalone")
    assert folder == str(checkout / "solo")
    assert loaded == "False"
