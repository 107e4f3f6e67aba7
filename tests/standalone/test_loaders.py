"""Splits, labels and batches of the datasets, and errors about missing images."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from solo_hardneg.data.datasets import ImageDataset, class_folder_names, load_split
from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.standalone.config import parse_linear, parse_pretrain
from solo_hardneg.standalone.loaders import linear_loaders, plain_loader, pretrain_loaders


@pytest.fixture
def folders(config, write_images, tmp_path):
    """``folders(train, val, ...)`` writes both splits and parses a config that names them."""

    def make(train, val=None, *overrides, parse=parse_pretrain):
        write_images(tmp_path / "train", train)
        val_path = "null"
        if val is not None:
            val_path = write_images(tmp_path / "val", val)
        paths = [f"data.train_path={tmp_path}/train", f"data.val_path={val_path}"]
        small = ["data.num_workers=0", "optimizer.batch_size=2"]
        name = "simclr" if parse is parse_pretrain else "linear"
        cfg = config(name, "data=custom", *paths, *small, *overrides)
        if parse is parse_linear:
            cfg.pretrained_feature_extractor = "unused.ckpt"
        cfg.data.suggest.crop_size = 8
        return parse(cfg)

    return make


def test_digits_have_a_fixed_split(config):
    cfg = parse_pretrain(config("simclr"))
    train, val = load_split(cfg, True), load_split(cfg, False)
    assert (len(train.images), len(val.images)) == (1437, 360)
    assert max(Counter(val.targets).values()) - min(Counter(val.targets).values()) <= 2
    rows = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in rows for image in val.images) <= 5  # digits has a few duplicates
    assert train.targets[:8] == [3, 9, 1, 3, 1, 9, 4, 4]
    assert train.images[0].shape == (8, 8, 3)
    assert max(image.max() for image in train.images) == 255


def test_batches_of_pretraining(config):
    train, val = pretrain_loaders(parse_pretrain(config("simclr")))
    indexes, views, targets = next(iter(train))
    assert [v.shape for v in views] == [(16, 3, 8, 8)] * 2
    assert not torch.equal(*views)
    split = load_split(parse_pretrain(config("simclr")), True)
    assert targets.tolist() == [split.targets[i] for i in indexes]
    assert len(train) == 1437 // 16
    X, y = next(iter(val))
    assert (X.shape, y.shape) == ((16, 3, 8, 8), (16,))
    assert sum(len(y) for _, y in val) == 360


def test_order_and_augmentation_follow_the_seed(config):
    def first_batch(seed):
        torch.manual_seed(seed)
        return next(iter(pretrain_loaders(parse_pretrain(config("simclr")))[0]))

    (i1, (a1, b1), _), (i2, (a2, b2), _) = first_batch(3), first_batch(3)
    assert torch.equal(i1, i2)
    assert torch.equal(a1, a2)
    assert torch.equal(b1, b2)
    assert not torch.equal(first_batch(4)[0], i1)


def test_batches_of_folders(folders):
    cfg = folders({"cat": 3, "ant": 2}, {"ant": 1, "cat": 2})
    assert cfg.data.num_classes == 2
    train, val = load_split(cfg, True), load_split(cfg, False)
    assert train.classes == ["ant", "cat"]
    assert train.targets == [0, 0, 1, 1, 1]
    assert val.targets == [0, 1, 1]
    indexes, views, targets = next(iter(pretrain_loaders(cfg)[0]))
    assert views[0].shape == (2, 3, 8, 8)
    assert targets.tolist() == [train.targets[i] for i in indexes]


def test_batches_of_folders_for_linear_evaluation(folders):
    cfg = folders({"a": 3, "b": 2}, {"a": 2, "b": 2}, parse=parse_linear)
    train, val = linear_loaders(cfg)
    assert next(iter(train))[0].shape == (2, 3, 8, 8)
    assert [y.tolist() for _, y in val] == [[0, 0], [1, 1]]
    plain = plain_loader(cfg, True, crop=8)
    assert [len(y) for _, y in plain] == [2, 2, 1]  # no image is dropped


def test_tiny_imagenets_layout(config, write_images, tmp_path):
    write_images(tmp_path / "train", {"n1/images": 2, "n2/images": 2})
    write_images(tmp_path / "val", {"images": 3})
    rows = [f"images{i}.png\t{name}\t0\t0\t1\t1\n" for i, name in enumerate(("n2", "n1", "n2"))]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    paths = [f"data.train_path={tmp_path}/train", f"data.val_path={tmp_path}/val"]
    cfg = parse_pretrain(config("simclr", "data=tinyimagenet", *paths))
    assert load_split(cfg, True).targets == [0, 0, 1, 1]
    val = load_split(cfg, False)
    assert val.targets == [1, 0, 1]
    assert [str(p).rsplit("/", 1)[-1] for p in val.images] == [f"images{i}.png" for i in range(3)]
    assert ImageDataset(val, lambda image: image.size)[0] == ((10, 12), 1)

    (tmp_path / "val" / "val_annotations.txt").write_text("images0.png\tn9\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"data\.val_path=.*that data\.train_path lacks.*n9"):
        load_split(cfg, False)


def test_differing_classes_are_named(folders):
    cfg = folders({"cat": 2, "ant": 2}, {"cat": 2, "dog": 2})
    with pytest.raises(DataError, match=r"data\.val_path=.*2 differ: ant, dog\. Both need"):
        pretrain_loaders(cfg)


def test_no_labels(config, write_images, tmp_path):
    write_images(tmp_path, {"flat": 5})
    (tmp_path / "flat" / "notes.txt").write_text("no image")
    path = f"data.train_path={tmp_path}/flat"
    small = ["data.num_workers=0", "optimizer.batch_size=5"]
    cfg = parse_pretrain(config("simclr", "data=custom", path, "data.no_labels=true", *small))
    train, val = pretrain_loaders(cfg)
    assert val is None
    assert cfg.data.num_classes == 1

    indexes, _, targets = next(iter(train))
    assert sorted(indexes.tolist()) == [0, 1, 2, 3, 4]
    assert targets.tolist() == [-1] * 5


def test_fraction_is_stratified(folders):
    cfg = folders({"a": 20, "b": 10}, None, "+data.fraction=0.5")
    kept = load_split(cfg, True)
    assert Counter(kept.targets) == {0: 10, 1: 5}
    assert all(f"/{'ab'[t]}/" in path for path, t in zip(kept.images, kept.targets, strict=True))


def test_fraction_that_leaves_nothing(folders):
    cfg = folders({"a": 3, "b": 3}, None, "+data.fraction=0.1")
    with pytest.raises(ConfigError, match=r"data\.fraction=0\.1: too few images"):
        load_split(cfg, True)


# torch waits five seconds for a worker that failed.
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_an_unreadable_image_is_named(folders, tmp_path, workers):
    cfg = folders({"a": 2}, None, f"data.num_workers={workers}")
    (tmp_path / "train" / "a" / "a1.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"a1\.png: this image can't be read.*Replace or remove"):
        next(iter(pretrain_loaders(cfg)[0]))


def test_fewer_images_than_a_batch(folders):
    cfg = folders({"a": 3}, None, "optimizer.batch_size=2", "devices=2")
    message = r"optimizer\.batch_size=2: there are only 1 training images for each device.*Set it"
    with pytest.raises(ConfigError, match=message):
        pretrain_loaders(cfg)


def test_missing_folders(folders, config, tmp_path):
    cfg = folders({"a": 2})
    cfg.data.val_path = str(tmp_path / "gone")
    with pytest.raises(DataError, match=r"data\.val_path=.*gone: there is no such folder"):
        pretrain_loaders(cfg)
    gone = (f"data.train_path={tmp_path}/gone", "data.val_path=null")
    with pytest.raises(DataError, match=r"data\.train_path=.*gone: there is no such folder"):
        parse_pretrain(config("simclr", "data=custom", *gone))


def test_a_folder_without_class_folders(config, write_images, tmp_path):
    write_images(tmp_path, {"flat": 2})
    cfg = config("simclr", "data=custom", f"data.train_path={tmp_path}/flat", "data.val_path=null")
    with pytest.raises(DataError, match=r"holds no class folders.*data\.no_labels=true"):
        parse_pretrain(cfg)


def test_an_empty_class_folder(folders, tmp_path):
    cfg = folders({"a": 2})
    (tmp_path / "train" / "empty").mkdir()
    assert class_folder_names(cfg) == ["a", "empty"]
    with pytest.raises(DataError, match=r"data\.train_path=.*empty.*Remove empty class folders"):
        load_split(cfg, True)


def test_cifar_is_read_and_not_downloaded(config, tmp_path, monkeypatch):
    paths = (f"data.train_path={tmp_path}", f"data.val_path={tmp_path}")
    cfg = parse_pretrain(config("simclr", "data=cifar10", *paths))
    message = r"data\.train_path=.*CIFAR10 isn't in.*data\.download=true"
    with pytest.raises(DataError, match=message):
        load_split(cfg, True)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, data in zip(names, pixels, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, len(name) % 10]}))
    labels = {"label_names": [f"class{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(labels))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    train, val = load_split(cfg, True), load_split(cfg, False)
    assert (len(train.images), len(val.images)) == (10, 2)
    assert val.targets == [3, 0]
    expected = pixels[5, 0].reshape(3, 32, 32).transpose(1, 2, 0)
    image = ImageDataset(val, np.asarray)[0][0]
    assert (image == expected).all()
