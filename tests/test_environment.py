"""What a shell or a notebook exports doesn't end a command."""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from integration_helpers import run_python
from omegaconf import DictConfig, OmegaConf

from solo_hardneg import environment
from solo_hardneg.environment import INPUTS, check_wandb, prepare, resolve_paths
from solo_hardneg.errors import ConfigError

INLINE = "module://nosuch_inline.backend_inline"


def test_any_text_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=name) for name in ("latin-1", "utf-8")]
    lenient = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    for stream in (*streams, lenient):
        monkeypatch.setattr(sys, "stdout", stream)
        prepare()
        print("τ caf\udce9", end="", flush=True)
    found = [stream.buffer.getvalue() for stream in (*streams, lenient)]
    assert found == [b"? caf?", "τ caf?".encode(), rb"\u03c4 caf\udce9"]


def pretend_it_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides matplotlib, and nothing that it has imported: numpy can't be imported twice."""
    importlib.import_module("matplotlib.rcsetup")
    known = {name: module for name, module in sys.modules.items() if name != "matplotlib"}
    monkeypatch.setattr(environment.sys, "modules", known)


@pytest.mark.parametrize(
    ("backend", "stays"),
    [
        (INLINE, False),
        ("nosuch", False),
        ("agg", True),
        ("module://matplotlib.backends.backend_svg", True),
    ],
)
def test_a_plot_backend_that_is_not_there(
    backend: str,
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MPLBACKEND", backend)
    pretend_it_is_not_imported(monkeypatch)
    prepare()
    prepare()
    assert os.environ.get("MPLBACKEND") == (backend if stays else None)
    said = capsys.readouterr().err
    assert said.count(f"MPLBACKEND={backend}: ") == (not stays)


def test_for_a_well_known_backend_matplotlib_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pretend_it_is_not_imported(monkeypatch)
    monkeypatch.setattr(environment, "_is_known", None)  # imports it
    prepare()
    assert os.environ["MPLBACKEND"] == "Agg"


@pytest.mark.full
def test_a_command_with_the_backend_of_another_environments_notebook(tmp_path: Path) -> None:
    """Lightning imports matplotlib, by way of torchmetrics."""
    code = (
        "from solo_hardneg.environment import prepare; prepare()\n"
        "import lightning.pytorch, matplotlib.pyplot"
    )
    done = run_python("-c", code, cwd=tmp_path, env={"MPLBACKEND": INLINE}).ok()
    assert f"MPLBACKEND={INLINE}" in done.err


def with_wandb(**changes: object) -> DictConfig:
    return OmegaConf.create({"wandb": {"enabled": True, "offline": False, **changes}})


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.mark.usefixtures("no_login")
def test_wandb_without_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    remedies = "wandb login.*WANDB_API_KEY.*wandb.offline=True.*wandb.enabled=False"
    with pytest.raises(ConfigError, match=f"^wandb.enabled=True: .*logged in.*{remedies}"):
        check_wandb(with_wandb())
    check_wandb(with_wandb(offline=True))
    check_wandb(with_wandb(enabled=False))
    check_wandb(OmegaConf.create({}))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_wandb(with_wandb())


def test_wandb_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^wandb.enabled=True: .*isn't installed. pip install"):
        check_wandb(with_wandb(offline=True))


@pytest.mark.parametrize("chdir", [True, False])
def test_paths_are_those_of_where_the_command_was_given(
    chdir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hydra = {"job": {"chdir": chdir}, "runtime": {"cwd": str(tmp_path)}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    given = {"train_path": "images/train", "val_path": None, "no_labels": False}
    cfg = OmegaConf.create({"data": given, "resume_from_checkpoint": "/a/last.ckpt"})
    resolve_paths(cfg, INPUTS)
    train = f"{tmp_path}/images/train" if chdir else "images/train"
    assert cfg == {"data": {**given, "train_path": train}, "resume_from_checkpoint": "/a/last.ckpt"}


@pytest.mark.parametrize("path", ["s3://bucket/last.ckpt", "None"])
def test_what_is_no_path_stays(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = {"job": {"chdir": True}, "runtime": {"cwd": str(tmp_path)}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    cfg = OmegaConf.create({"resume_from_checkpoint": path})
    resolve_paths(cfg, INPUTS)
    assert cfg.resume_from_checkpoint == path
