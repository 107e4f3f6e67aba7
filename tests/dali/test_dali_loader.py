"""The standalone host's DALI: batches that are what they say, orders, views, errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from marked_images import IMAGES, PER_CLASS, PLAIN, read_marks, write_marked
from omegaconf import DictConfig
from PIL import Image
from tiny_backbone import use_tiny
from torchvision.transforms.functional import rgb_to_grayscale

from solo_hardneg import dali
from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.resident.recipe import Recipe
from solo_hardneg.standalone.config import parse_linear, parse_pretrain
from solo_hardneg.standalone.data import Split, linear_loaders, pretrain_loaders
from solo_hardneg.standalone.run import linear, pretrain

pytest.importorskip("nvidia.dali")
from solo_hardneg.standalone.dali import DaliLoader

Maker = Callable[..., DictConfig]


@pytest.fixture
def config(marked: Path, tmp_path: Path) -> Maker:
    """``config("simclr", "seed=1", ...)``: on DALI, on the CPU, on the marked images."""

    def make(name: str, *overrides: str) -> DictConfig:
        small = [
            *("data=custom", f"data.train_path={marked}", f"data.val_path={marked}"),
            *("data.format=dali", "dali.device=cpu", "data.num_workers=1"),
            *("data.suggest.crop_size=16", "optimizer.batch_size=8", "accelerator=cpu"),
            *("max_epochs=2", f"checkpoint.dir={tmp_path}/runs"),
            "+enable_progress_bar=false",
        ]
        if name != "linear":
            small += ["method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8"]
        if name.startswith("moco"):
            small.append("method_kwargs.queue_size=32")
        with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            return compose(name, [*small, *overrides])

    return make


def epochs(loader: DaliLoader, number: int, first: int = 0) -> list[list[list[Any]]]:
    """All batches of so many epochs, as Lightning asks for them."""
    found = []
    for epoch in range(first, first + number):
        loader.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def orders(loader: DaliLoader, number: int, first: int = 0) -> list[list[int]]:
    return [
        [index for batch in batches for index in batch[0].tolist()]
        for batches in epochs(loader, number, first)
    ]


def pretraining(cfg: DictConfig) -> DaliLoader:
    return pretrain_loaders(parse_pretrain(cfg))[0]


# ---------------------------------------------------------------- batches


def test_labels_and_indexes_belong_to_the_images(config: Maker) -> None:
    loader = pretraining(config("mocov2_banded", *PLAIN))
    assert len(loader) == IMAGES // 8
    for batches in epochs(loader, 2):
        assert len(batches) == len(loader)
        seen = []
        for indexes, views, targets in batches:
            assert [view.shape for view in views] == [(8, 3, 16, 16)] * 2
            for view in views:
                assert read_marks(view) == (indexes.tolist(), targets.tolist())
            assert targets.tolist() == [index // PER_CLASS for index in indexes.tolist()]
            seen += indexes.tolist()
        assert len(set(seen)) == len(seen)


def test_so_do_those_of_linear_evaluation(config: Maker) -> None:
    cfg = config("linear", "pretrained_feature_extractor=none.ckpt")
    loader, _ = linear_loaders(parse_linear(cfg))
    for X, targets in loader:
        assert read_marks(X)[1] == targets.tolist()


def test_unlabelled_images(config: Maker) -> None:
    loader = pretraining(config("simclr", *PLAIN, "++data.no_labels=true"))
    for indexes, views, targets in loader:
        assert read_marks(views[0])[0] == indexes.tolist()
        assert (targets == -1).all()


def test_a_share_of_the_images(config: Maker) -> None:
    loader = pretraining(config("simclr", *PLAIN, "+data.fraction=0.4"))
    assert len(loader) == 18 // 8
    for _, views, targets in loader:
        assert read_marks(views[0])[1] == targets.tolist()


# ---------------------------------------------------------------- order


def test_the_order_follows_seed_and_epoch(config: Maker) -> None:
    first = orders(pretraining(config("simclr", "seed=1")), 3)
    assert first == orders(pretraining(config("simclr", "seed=1")), 3)
    assert len({tuple(order) for order in first}) == 3
    others = orders(pretraining(config("simclr", "seed=2")), 3)
    assert not {tuple(order) for order in first} & {tuple(order) for order in others}


def test_a_resumed_run_has_the_order_of_its_epoch_and_other_views(config: Maker) -> None:
    (whole,) = epochs(pretraining(config("simclr")), 1)
    through = orders(pretraining(config("simclr")), 3)
    resumed = pretraining(config("simclr"))
    assert orders(resumed, 2, first=1) == through[1:]
    (again,) = epochs(pretraining(config("simclr")), 1, first=1)
    assert not torch.equal(whole[0][1][0], again[0][1][0])


def test_an_epoch_that_was_left_early_is_not_finished_later(config: Maker) -> None:
    loader = pretraining(config("simclr"))
    through = orders(pretraining(config("simclr")), 2)
    for _ in loader:
        break
    assert orders(loader, 1, first=1) == through[1:]


def test_processes_share_the_images_out(config: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(2):
        monkeypatch.setattr("solo_hardneg.standalone.dali.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("solo_hardneg.standalone.dali.get_world_size", lambda: 2)
        (share,) = orders(pretraining(config("simclr")), 1)
        assert len(share) == 16  # two batches of 22 images
        shares.append(set(share))
    assert not shares[0] & shares[1]


# ---------------------------------------------------------------- views


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(3, 6, 6, generator=generator)
    big = torch.nn.functional.interpolate(small[None], size=48, mode="bilinear")[0]
    Image.fromarray((255 * big).byte().permute(1, 2, 0).numpy()).save(file)
    return file


def view_of(picture: Path, config: Maker, **steps: Any) -> torch.Tensor:
    """(8, 3, 48, 48) views of one picture by a recipe, not normalized."""
    cfg = parse_pretrain(config("simclr"))
    recipe = Recipe(size=48, cut=True, **steps)
    loader = DaliLoader(Split([str(picture)] * 8, [0] * 8, ["one"]), [recipe], cfg, indexed=False)
    return next(iter(loader))[0]


def test_steps_that_are_sure_do_what_torchvisions_do(picture: Path, config: Maker) -> None:
    plain = view_of(picture, config)
    assert plain.std(dim=0).max() == 0
    images = (plain * 255).round()
    flipped = view_of(picture, config, flip=1.0)
    assert torch.allclose(flipped, plain.flip(3), atol=1e-6)
    grey = view_of(picture, config, grey=1.0)
    expected = rgb_to_grayscale(images, num_output_channels=3) / 255
    assert (grey - expected).abs().max() < 3 / 255
    solarised = 255 * view_of(picture, config, solarise=1.0)
    assert torch.allclose(solarised, torch.where(images >= 128, 255 - images, images), atol=0.01)
    brighter = view_of(picture, config, jitter=1.0, factors=((0.5, 0.5), None, None, None))
    assert (brighter - plain / 2).abs().max() < 2 / 255
    blurred = view_of(picture, config, blur=1.0)
    steps = [view.diff(dim=3).abs().mean() for view in (blurred, plain)]
    assert steps[0] < steps[1]
    normalized = view_of(picture, config, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0]))
    assert torch.allclose(normalized, (plain - mean) / std, atol=1e-5)
    equal = view_of(picture, config, equalise=1.0)
    assert equal.flatten(1).std(dim=1).min() > plain[0].std()


@pytest.mark.parametrize("step", ["flip", "grey", "blur", "solarise", "equalise", "jitter"])
def test_steps_are_drawn_image_by_image(picture: Path, config: Maker, step: str) -> None:
    factors = {"factors": ((0.3, 0.3), None, None, None)} if step == "jitter" else {}
    views = view_of(picture, config, **{step: 0.5}, **factors)
    untouched = (views - view_of(picture, config)).abs().flatten(1).max(dim=1).values < 1e-3
    assert 1 <= untouched.sum() <= 7


def test_crops_are_of_their_scale(picture: Path, config: Maker) -> None:
    whole = view_of(picture, config, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert (whole - view_of(picture, config)).abs().max() < 2 / 255
    parts = view_of(picture, config, scale=(0.1, 0.2), ratio=(0.75, 1.33))
    assert parts.std(dim=0).max() > 0.05


# ---------------------------------------------------------------- whole runs, errors


def test_it_trains_records_and_evaluates(config: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)
    on = ["hardness.enabled=true", "hardness.every_n_steps=1"]
    result = pretrain(config("mocov2_banded", "negatives=drop_own_image", *on))
    assert result.metrics["train_nce_loss"] > 0
    assert len([*(result.folder / "hardness").glob("*.parquet")]) == 2
    extractor = f"pretrained_feature_extractor={result.checkpoint}"
    assert 0 <= linear(config("linear", extractor)).metrics["val_acc1"] <= 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dali.device=gpu"], r"dali.device=gpu: there is no GPU here. Set dali.device=cpu"),
        (["dali.device=tpu"], r"dali.device: unknown device 'tpu'|dali.device=tpu: must be"),
        (["data.num_workers=0"], r"data.num_workers=0: must be a whole number above 0 with"),
        (["data=digits", "data.format=dali"], r"data.format=dali: reads image files"),
        (["dali.encode_indexes_into_labels=false"], r"here they are always true"),
        (["optimizer.batch_size=46"], r"only 45 training images for each device"),
    ],
)
def test_mistakes(config: Maker, overrides: list[str], message: str) -> None:
    if torch.cuda.is_available() and "gpu" in overrides[0]:
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        pretraining(config("simclr", *overrides))


def test_without_dali(config: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"needs nvidia-dali, .*pip install 'solo-hardneg\[dali"):
        pretraining(config("simclr"))


def test_floats_are_refused(config: Maker, tmp_path: Path) -> None:
    """DALI itself would clip them."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "images" / "a" / "a.tiff")
    paths = (f"data.train_path={tmp_path}/images", "data.val_path=null")
    cfg = config("simclr", *paths, "optimizer.batch_size=1")
    with pytest.raises(DataError, match=r"a\.tiff: its pixels are floating-point"):
        pretraining(cfg)


def test_names_that_are_not_utf8(config: Maker, tmp_path: Path) -> None:
    write_marked(tmp_path / "images")
    folder = os.fsencode(tmp_path / "images")
    os.rename(folder + b"/class4", folder + b"/class4-caf\xe9")
    cfg = config("simclr", *PLAIN, f"data.train_path={tmp_path}/images", "data.val_path=null")
    for indexes, views, _ in pretraining(cfg):
        assert read_marks(views[0])[0] == indexes.tolist()


def test_an_image_that_is_none(config: Maker, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(8):
        (tmp_path / "images" / "a" / f"{number}.png").write_bytes(b"no image")
    cfg = config("simclr", f"data.train_path={tmp_path}/images", "data.val_path=null")
    with pytest.raises(DataError, match=r"\d\.png: this image can't be read .*Replace or remove"):
        list(pretraining(cfg))
