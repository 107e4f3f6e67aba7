"""Exported backbones load in timm and torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from solo_hardneg.cli import app
from solo_hardneg.errors import CheckpointError, ConfigError, HardnegError
from solo_hardneg.models.backbones import build_backbone, load_backbone
from solo_hardneg.study.export import export_backbone

VIT = {"img_size": 32, "patch_size": 8}


def run_of(folder: Path, name: str, dataset: str, method: str = "simclr", **kwargs: Any) -> Any:
    """Writes a run's folder; returns its backbone."""
    torch.manual_seed(0)
    backbone, _ = build_backbone(name, method, kwargs, dataset)
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": {**state, "classifier.weight": torch.zeros(1)}}, folder / "x.ckpt")
    args = {"method": method, "backbone": {"name": name, "kwargs": kwargs}}
    (folder / "args.json").write_text(json.dumps({**args, "data": {"dataset": dataset}}))
    return backbone.eval()


@pytest.mark.parametrize(
    ("name", "dataset", "kwargs"),
    [("resnet18", "imagenet100", {}), ("vit_tiny", "custom", VIT), ("resnet10t", "custom", {})],
)
def test_timm_and_torchvision_load_it(
    tmp_path: Path, name: str, dataset: str, kwargs: dict[str, Any]
) -> None:
    backbone = run_of(tmp_path / "run", name, dataset, **kwargs)
    text = export_backbone(tmp_path / "run", tmp_path / "x.safetensors")
    state = load_file(tmp_path / "x.safetensors")
    images = torch.randn(2, 3, 32, 32)
    (line,) = (line for line in text.splitlines() if "create_model" in line)
    model = eval(line.split("=", 1)[1], {"timm": timm})
    model.load_state_dict(state)  # no missing and no unexpected key
    torch.testing.assert_close(model.eval()(images), backbone(images))
    if name == "resnet18":
        torchvisions = torchvision.models.resnet18()
        missing, unexpected = torchvisions.load_state_dict(state, strict=False)
        assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])


def test_the_printed_lines_load_a_network_for_small_images(tmp_path: Path) -> None:
    backbone = run_of(tmp_path / "run", "resnet18", "cifar100")
    to = tmp_path / "x.safetensors"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", str(to)])
    assert done.exit_code == 0
    names: dict[str, Any] = {"timm": timm, "torch": torch}
    exec("\n".join(line.strip() for line in done.output.splitlines()[1:]), names)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(names["model"].eval()(images), backbone(images))


def test_a_network_keeps_its_first_layers_on_another_dataset(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    for trained_on, used_on in (("cifar10", "custom"), ("custom", "cifar10")):
        backbone = run_of(tmp_path, "resnet18", trained_on)
        other, _ = build_backbone("resnet18", None, {}, used_on)
        state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
        load_backbone(other, state, "checkpoint", tmp_path)
        torch.testing.assert_close(other.eval()(images), backbone(images))
        assert isinstance(other.maxpool, nn.Identity) == (trained_on == "cifar10")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backbone": {"name": "wide_resnet28w2"}}, ConfigError, "neither torchvision nor timm"),
        ({"backbone": {"name": "resnet50"}}, CheckpointError, "its backbone doesn't fit"),
        ({"method": "mocov3", "backbone": {"name": "vit_tiny"}}, ConfigError, "built by solo-lea"),
        ({"backbone": {}}, ConfigError, "backbone.name: unknown for"),
    ],
)
def test_other_backbones_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[HardnegError], message: str
) -> None:
    run_of(tmp_path, "resnet18", "custom")
    args = json.loads((tmp_path / "args.json").read_text())
    (tmp_path / "args.json").write_text(json.dumps({**args, **change}))
    with pytest.raises(error, match=message):
        export_backbone(tmp_path, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path, "resnet18", "custom")
    with pytest.raises(ConfigError, match="--to=x.pth: must end in .safetensors. For example x.s"):
        export_backbone(tmp_path, Path("x.pth"))
    (tmp_path / "file").touch()
    with pytest.raises(HardnegError, match="can't be written"):
        export_backbone(tmp_path, tmp_path / "file" / "x.safetensors")
