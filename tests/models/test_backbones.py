"""Backbones by name: shapes, state keys, refused names."""

from __future__ import annotations

import pytest
import torch

from solo_hardneg.errors import ConfigError
from solo_hardneg.models.backbones import build_backbone


def test_resnet_for_small_and_for_large_images():
    small, dim = build_backbone("resnet18", "simclr", {}, "digits")
    large, _ = build_backbone("resnet18", "simclr", {"zero_init_residual": True}, "custom")
    assert dim == 512
    assert small(torch.zeros(2, 3, 8, 8)).shape == (2, 512)
    assert small.conv1.weight.shape == (64, 3, 3, 3)
    assert small.conv1.padding == (2, 2)
    assert small.conv1.bias is None
    assert large.conv1.weight.shape == (64, 3, 7, 7)
    assert large.layer1[0].bn2.weight.abs().sum() == 0
    assert set(small.state_dict()) == set(large.state_dict())
    assert not any(key.startswith("fc") for key in small.state_dict())
    assert small.maxpool(torch.ones(1, 1, 4, 4)).shape == (1, 1, 4, 4)


def test_solo_learns_vit_is_timms():
    vit, dim = build_backbone("vit_tiny", "simclr", {"img_size": 16, "patch_size": 8}, "custom")
    assert dim == 192
    assert vit(torch.zeros(1, 3, 16, 16)).shape == (1, 192)
    assert vit.pos_embed.shape == (1, 5, 192)


def test_any_timm_model():
    backbone, dim = build_backbone("resnet10t", "simclr", {}, "custom")
    assert backbone.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, dim)


@pytest.mark.parametrize(
    ("name", "method", "kwargs", "message"),
    [
        ("resnet81", "simclr", {}, r"unknown .*'resnet81'\. Did you mean 'resnet18'\?.*timm"),
        ("resnet18", "simclr", {"depth": 3}, r"backbone\.kwargs=\{'depth': 3\}: resnet18 refuses"),
        ("vit_tiny", "mocov3", {}, r"pretrain_method=mocov3: its ViT is built by solo-learn only"),
    ],
)
def test_refused_backbones(name, method, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, method, kwargs, "custom")
