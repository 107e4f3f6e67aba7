"""Checkpoints of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from solo_hardneg.errors import CheckpointError
from solo_hardneg.models.backbones import build_backbone, load_backbone
from solo_hardneg.models.checkpoints import read_checkpoint, read_encoder
from solo_hardneg.study.encoder import load_encoder

KEY = "pretrained_feature_extractor"
IMAGES = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def moco(version: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network as the official MoCo trains it, and the checkpoint that it writes."""
    network = torchvision.models.resnet18(num_classes=5)
    if version == 2:
        network.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 5))
    online = prefixed("module.encoder_q.", network.state_dict())
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    momentum = prefixed("module.encoder_k.", zeros)
    queue = {"module.queue": torch.zeros(5, 8), "module.queue_ptr": torch.zeros(1)}
    state = {**momentum, **online, **queue}
    return network.eval(), {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def features_of(file: Path, name: str = "resnet18", **kwargs: Any) -> Tensor:
    _, checkpoint = read_encoder(KEY, file)
    backbone, _ = build_backbone(name, None, kwargs, "cifar10")
    load_backbone(backbone, checkpoint["state_dict"], KEY, file)
    return backbone.eval()(IMAGES)


@pytest.mark.parametrize("version", [1, 2])
def test_the_official_moco_with_its_projector(tmp_path: Path, version: int) -> None:
    network, checkpoint = moco(version)
    file = tmp_path / "checkpoint_0003.pth.tar"
    torch.save(checkpoint, file)
    loaded = load_encoder(file, {"backbone": {"name": "resnet18"}}, {"dataset": "custom"})
    expected = nn.functional.normalize(network(IMAGES), dim=1)
    torch.testing.assert_close(loaded.encoder(IMAGES, "queries"), expected)
    network.fc = nn.Identity()
    torch.testing.assert_close(features_of(file), network(IMAGES))


@pytest.mark.parametrize("kind", ["plain", "wrapped", "timm", "safetensors", "vit"])
def test_plain_state_dicts(tmp_path: Path, kind: str) -> None:
    file, kwargs = tmp_path / "x.pth", {}
    torch.manual_seed(0)
    if kind == "vit":
        kwargs = {"img_size": 40, "patch_size": 8}
        network = timm.create_model("vit_tiny_patch16_224", num_classes=7, **kwargs)
    else:
        network = torchvision.models.resnet18(num_classes=7)
    state = network.state_dict()
    if kind == "safetensors":
        file = tmp_path / "x.safetensors"
        save_file(state, file)
    else:
        wrapped = {"model": prefixed("module.", state), "epoch": 3}
        contents = {"wrapped": wrapped, "timm": {"state_dict": state, "arch": "resnet18"}}
        torch.save(contents.get(kind, dict(state)), file)
    network = network.eval()
    network.reset_classifier(0) if kind == "vit" else setattr(network, "fc", nn.Identity())
    found = features_of(file, "vit_tiny" if kind == "vit" else "resnet18", **kwargs)
    torch.testing.assert_close(found, network(IMAGES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights"),
        ({"epoch": 3}, "holds no weights"),
        ({"state_dict": {"x": 1}}, "holds no weights"),
        ({"x": torch.zeros(1)}, "holds no backbone"),
    ],
)
def test_files_without_an_encoder_are_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        features_of(tmp_path / "x.pth")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="cut off, or no safetensors file"):
        read_encoder(KEY, tmp_path / "x.safetensors")


def test_a_run_does_not_resume_plain_weights(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).state_dict()), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="holds no 'state_dict'"):
        read_checkpoint("resume_from_checkpoint", tmp_path / "x.ckpt")
