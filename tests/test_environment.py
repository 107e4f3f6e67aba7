"""Encodings, matplotlib backends, wandb logins and the working directory."""

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


def test_print_accepts_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=name) for name in ("latin-1", "utf-8")]
    lenient = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    for stream in (*streams, lenient):
        monkeypatch.setattr(sys, "stdout", stream)
        prepare()
        print("τ caf\udce9", end="", flush=True)
    found = [stream.buffer.getvalue() for stream in (*streams, lenient)]
    assert found == [b"? caf?", "τ caf?".encode(), rb"\u03c4 caf\udce9"]


def hide_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides matplotlib only: numpy, which it imports, can't be imported twice."""
    importlib.import_module("matplotlib.rcsetup")
    others = {name: module for name, module in sys.modules.items() if name != "matplotlib"}
    monkeypatch.setattr(environment.sys, "modules", others)


@pytest.mark.parametrize(
    ("backend", "exists"),
    [
        (INLINE, False),
        ("nosuch", False),
        ("agg", True),
        ("module://matplotlib.backends.backend_svg", True),
    ],
)
def test_missing_backend_is_unset(
    backend: str,
    exists: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MPLBACKEND", backend)
    hide_matplotlib(monkeypatch)
    prepare()
    prepare()
    assert os.environ.get("MPLBACKEND") == (backend if exists else None)
    err = capsys.readouterr().err
    assert err.count(f"MPLBACKEND={backend}: ") == (not exists)


def test_common_backend_needs_no_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    hide_matplotlib(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib.rcsetup", None)  # an import would fail
    prepare()
    assert os.environ["MPLBACKEND"] == "Agg"


@pytest.mark.full
def test_program_with_the_backend_of_another_environment(tmp_path: Path) -> None:
    """Lightning imports matplotlib through torchmetrics."""
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


def test_wandb_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^wandb.enabled=True: .*isn't installed. pip install"):
        check_wandb(with_wandb(offline=True))


@pytest.mark.parametrize("chdir", [True, False])
def test_relative_paths_refer_to_the_starting_directory(
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
def test_urls_and_none_are_kept(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = {"job": {"chdir": True}, "runtime": {"cwd": str(tmp_path)}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    cfg = OmegaConf.create({"resume_from_checkpoint": path})
    resolve_paths(cfg, INPUTS)
    assert cfg.resume_from_checkpoint == path
