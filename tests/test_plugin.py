"""The Hydra plug-in in foreign programs, registration, and the choice of a host."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from integration_helpers import run_python

from solo_hardneg import host, plugin
from solo_hardneg.errors import HostError
from solo_hardneg.methods import OUR_METHODS

IMPORTING = """
import json, sys
import hydra
before = set(sys.modules)
import hydra_plugins.solo_hardneg_searchpath as plugin
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(roots - {"hydra", "hydra_plugins", *sys.stdlib_module_names})))
"""
PROGRAM = """
import json, sys
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.2", config_path="conf", config_name="config")
def main(cfg):
    print(json.dumps({
        "file": sys.modules["hydra_plugins.solo_hardneg_searchpath"].__file__,
        "cfg": [cfg.answer, cfg.group.size],
        "providers": [source.provider for source in HydraConfig.get().runtime.config_sources],
        "loaded": [m for m in ("solo_hardneg", "torch", "lightning") if m in sys.modules],
    }))

main()
"""


# ---------------------------------------------------------------------- in a foreign program


def test_imports_only_hydra_and_sys(tmp_path: Path) -> None:
    found = json.loads(run_python("-c", IMPORTING, cwd=tmp_path).ok().out)
    assert found == []


def test_does_nothing_in_a_foreign_program(tmp_path: Path) -> None:
    (tmp_path / "conf" / "group").mkdir(parents=True)
    config = "defaults:\n  - group: small\n  - _self_\nanswer: 42\n"
    (tmp_path / "conf" / "config.yaml").write_text(config)
    (tmp_path / "conf" / "group" / "small.yaml").write_text("size: 1\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(run_python("program.py", cwd=tmp_path).ok().out)
    assert Path(found["file"]).name == "solo_hardneg_searchpath.py"  # it was loaded
    assert "main" in found["providers"]
    assert "solo-hardneg" not in found["providers"]
    assert found["loaded"] == []
    assert found["cfg"] == [42, 1]


# ---------------------------------------------------------------------- registration


def test_registering_is_idempotent() -> None:
    plugin.register()
    once = dict(host.METHODS)
    plugin.register()
    assert once == host.METHODS
    assert OUR_METHODS.items() <= host.METHODS.items()


def test_name_conflict_names_both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        pass

    monkeypatch.setitem(host.METHODS, "mocov2_banded", Foreign)
    with pytest.raises(HostError) as error:
        plugin.register()
    assert "'mocov2_banded' is already used" in str(error.value)
    assert f"{Foreign.__module__}.{Foreign.__qualname__}" in str(error.value)
    assert "solo_hardneg.methods.moco.MoCoV2Banded" in str(error.value)
    assert host.METHODS["mocov2_banded"] is Foreign


# ---------------------------------------------------------------------- the choice of a host


@pytest.fixture
def no_solo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every package called solo unimportable."""
    for name in [m for m in sys.modules if m.partition(".")[0] == "solo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "solo").is_dir()])


def test_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host.VARIABLE, "nonsense")
    with pytest.raises(HostError, match="SOLO_HARDNEG_HOST=nonsense: must be solo or standalone"):
        host.choose()


@pytest.mark.usefixtures("no_solo")
def test_forcing_solo_learn_without_it_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host.VARIABLE, "solo")
    with pytest.raises(HostError, match="=solo: .* put the checkout on PYTHONPATH"):
        host.choose()


@pytest.mark.usefixtures("no_solo")
def test_foreign_package_called_solo_is_not_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(host.VARIABLE, raising=False)
    (tmp_path / "solo" / "methods").mkdir(parents=True)
    (tmp_path / "solo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert host.solo_learn_folder() is None
    assert host.choose() == "standalone"

    # With the files that we need, it is the host.
    for name in ("methods/mocov2plus.py", "args/pretrain.py"):
        (tmp_path / "solo" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "solo" / name).touch()
    assert host.solo_learn_folder() == tmp_path / "solo"
    assert host.choose() == "solo"


@pytest.mark.full
@pytest.mark.host
def test_standalone_can_be_forced_inside_a_checkout(solo_learn: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from solo_hardneg import host; "
        "print(host.NAME, host.MoCoV2Plus.__module__, host.solo_learn_folder(), "
        "'solo' in sys.modules)"
    )
    env = {"PYTHONPATH": str(solo_learn), "SOLO_HARDNEG_HOST": "standalone"}
    name, module, folder, loaded = run_python("-c", program, cwd=tmp_path, env=env).ok().out.split()
    assert name == "standalone"
    assert module.startswith("solo_hardneg.standalone")
    assert folder == str(solo_learn / "solo")
    assert loaded == "False"
