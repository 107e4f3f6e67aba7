"""The settings of ``solo-hardneg analyze``, and the images that they draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from integration_helpers import PROJECT, write_images
from omegaconf import OmegaConf
from PIL import Image

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.study import analyze as module
from solo_hardneg.study import encoder
from solo_hardneg.study.analyze import read_analyze_config, split_arguments
from solo_hardneg.study.images import draw_images, find_images, make_pipelines

CONFIGS = PROJECT / "configs"


def test_the_defaults_are_the_papers() -> None:
    cfg = read_analyze_config([])
    assert (cfg.queries, cfg.negatives, cfg.percentiles) == (2000, 2000, 100)
    assert (cfg.split, cfg.views, cfg.tsne) == ("train", "plain", True)
    assert "data" not in cfg or cfg.data is None
    # The file and the rules agree.
    assert {key: cfg[key] for key in module._RULES} == {k: d for k, (d, _) in module._RULES.items()}
    assert {*OmegaConf.load(CONFIGS / "analyze.yaml")} == {*module._RULES, "defaults"}


def test_settings_may_be_named_as_groups_of_configs() -> None:
    cfg = read_analyze_config(["negatives=7", "data=cifar100", "data.train_path=/x", "tsne=false"])
    assert (cfg.negatives, cfg.tsne) == (7, False)
    assert (cfg.data.dataset, cfg.data.train_path) == ("cifar100", "/x")
    assert read_analyze_config(["++data.train_path=/x"]).data == {"train_path": "/x"}


def test_programs_of_hydra_can_study_checkpoints() -> None:
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        read_analyze_config(["queries=3"])
        assert compose("simclr").method == "simclr"  # its own configs still work


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("querys=3", "analyze: unknown setting 'querys'. Did you mean 'queries'? Known: back"),
        ("data.train_pth=x", "data: unknown key 'train_pth'. Did you mean 'train_path'? Known: "),
        ("data=cifr10", "data: unknown group of images 'cifr10'. Did you mean 'cifar10'? Known"),
        ("queries=2.5", "queries=2.5: must be a whole number."),
        ("negatives=1", "negatives=1: must be at least 2."),
        ("split=test", "split: unknown split 'test'. Known: train, val."),
        ("tsne=1", "tsne=1: must be true or false."),
        ("crop_size=0", "crop_size=0: must be at least 1."),
        ("synsets=nix.csv", "synsets=nix.csv: no such file. Give a CSV file with the columns "),
        ("queries=1,2", "queries=queries=1,2: can't be deleted or have several values. Wri"),
        ("~queries", "queries=~queries: can't be deleted or have several values. Write KEY"),
        ("queries=[", "queries=[: can't be read ("),
    ],
)
def test_a_wrong_setting_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_analyze_config([override])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_checkpoints_are_split_from_settings(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("name=x.ckpt").touch()
    given = ["runs/a-ep=9.ckpt", "name=x.ckpt", "queries=3", "+data.train_path=/a=b", "run"]
    assert split_arguments(given) == (
        ["runs/a-ep=9.ckpt", "name=x.ckpt", "run"],
        ["queries=3", "+data.train_path=/a=b"],
    )


def test_queries_and_negatives_are_different_images_drawn_by_the_seed() -> None:
    queries, negatives, notes = draw_images(100, 30, 60, seed=1)
    assert (len(queries), len(negatives), notes) == (30, 60, [])
    assert len({*queries, *negatives}) == 90
    assert {*queries, *negatives} <= {*range(100)}
    np.testing.assert_array_equal(draw_images(100, 30, 60, seed=1)[1], negatives)
    assert not np.array_equal(draw_images(100, 30, 60, seed=2)[1], negatives)


def test_too_few_images_shrink_both_in_proportion() -> None:
    queries, negatives, notes = draw_images(90, 1000, 2000, seed=1)
    assert (len(queries), len(negatives)) == (30, 60)
    assert "only 90 images: 30 queries and 60 negatives are used, not 1000 and 2000" in notes[0]
    assert [len(part) for part in draw_images(4, 1, 2000, 0)[:2]] == [1, 3]
    assert [len(part) for part in draw_images(4, 2000, 2, 0)[:2]] == [2, 2]
    with pytest.raises(DataError, match="There are 3 images; a study needs at least four."):
        draw_images(3, 1, 1, 0)


@pytest.mark.parametrize("views", ["plain", "augmented"])
def test_views_are_those_of_a_config_with_references(tmp_path: Path, views: str) -> None:
    """solo-learn writes the ``args.json`` of its own methods unresolved."""
    train = write_images(tmp_path / "images", per_class=6, classes=2)
    data = {"dataset": "custom", "train_path": str(train), "suggest": {"crop_size": 24}}
    view = {"crop_size": "${data.suggest.crop_size}", "num_crops": 2, "horizontal_flip": {}}
    args = {"data": data, "augmentations": [view]}
    cfg = read_analyze_config(["queries=4", "negatives=8", f"views={views}"])

    def pipelines() -> Any:
        (tmp_path / "args.json").write_text(json.dumps(args))
        config = encoder.run_config(tmp_path / "x.ckpt")
        return make_pipelines(config, find_images(config, cfg, {}), cfg, tmp_path / "x.ckpt")

    for pipeline in pipelines():
        assert pipeline(Image.new("RGB", (40, 30))).shape == (3, 24, 24)
    view["crop_size"] = "${oc.decode:'32'}"  # resolvers are not executed
    with pytest.raises(ConfigError, match=r"crop_size.*(Add crop_size=224|must be a whole number)"):
        pipelines()
