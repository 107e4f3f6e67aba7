"""From checkpoints to figures: images drawn, groups, files, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from integration_helpers import write_images
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from solo_hardneg.cli import app
from solo_hardneg.errors import CheckpointError, ConfigError, DataError
from solo_hardneg.study import analyze as module
from solo_hardneg.study import encoder, plots
from solo_hardneg.study.analyze import analyze
from solo_hardneg.study.measure import load_study
from solo_hardneg.study.output import pool_class_means

WIDTH, SIDE = 12, 8
SMALL = ("queries=60", "negatives=80", "percentiles=10", "tsne=false")
VIEW = {
    "crop_size": SIDE,
    "num_crops": 2,
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "horizontal_flip": {"prob": 0.5},
}
CONFIG: dict[str, Any] = {
    "method": "mocov2_banded",
    "name": "a",
    "seed": 1,
    "negatives": {"keep": {"band": [0.95, 1.0]}},
    "backbone": {"name": "resnet18", "kwargs": {}},
    "method_kwargs": {"temperature": 0.2},
    "data": {"dataset": "digits", "train_path": "builtin", "val_path": "builtin"},
    "augmentations": [VIEW],
}


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> tuple[nn.Module, int]:
        layers = [nn.AdaptiveAvgPool2d(SIDE), nn.Flatten(), nn.Linear(3 * SIDE * SIDE, WIDTH)]
        return nn.Sequential(*layers), WIDTH

    monkeypatch.setattr(encoder, "build_backbone", build)


@pytest.fixture(autouse=True)
def unsaved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes figures without drawing them, which takes most of the time."""
    if request.function is not test_a_checkpoint_is_studied_in_its_folder:
        monkeypatch.setattr(plots, "save_png", lambda figure, file: file.touch())


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """``run("one", seed=2)`` writes the checkpoint of a run to a folder of that name."""

    def write(folder_name: str, epoch: int = 0, config: Any = None, **changes: Any) -> Path:
        folder = tmp_path / folder_name
        folder.mkdir(exist_ok=True)
        own = {**CONFIG, **changes} if config is None else config
        torch.manual_seed(own.get("seed") or 0)
        backbone, _ = encoder.build_backbone("", None, {}, "")
        projector = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 4))
        parts = {"backbone": backbone, "projector": projector}
        state = {f"{p}.{k}": v for p, m in parts.items() for k, v in m.state_dict().items()}
        torch.save({"state_dict": state, "epoch": epoch}, folder / f"{folder_name}-ep={epoch}.ckpt")
        if own:
            (folder / "args.json").write_text(json.dumps(own))
        return folder / f"{folder_name}-ep={epoch}.ckpt"

    return write


# ---------------------------------------------------------------------- whole studies


def test_a_checkpoint_is_studied_in_its_folder(run: Callable[..., Path]) -> None:
    path = run("a", epoch=4)
    found = analyze([path], ["queries=60", "negatives=80", "percentiles=10"])
    assert found.folder == path.parent / "analysis"
    assert {p.name for p in found.folder.iterdir()} == {p.name for p in found.written}
    assert all(p.stat().st_size for p in found.written)
    (one,) = found.studies
    again = load_study(found.folder / "study.npz")
    np.testing.assert_array_equal(again.same_class, one.same_class)
    assert (one.query_embeddings.shape, one.negative_embeddings.shape) == ((60, 4), (80, 4))
    info = {
        **{"group": "MoCo v2: hardest_5", "checkpoint": str(path), "epoch": 5, "seed": 1},
        **{"method": "mocov2_banded", "policy": CONFIG["negatives"], "dataset": "digits"},
        **{"study_seed": 5, "queries": 60, "negatives": 80, "percentiles": 10},
        **{"split": "train", "views": "plain", "projector": True},
    }
    assert {key: again.info[key] for key in info} == info
    assert again.tsne.shape == (60, 2)
    np.testing.assert_array_equal(again.tsne_labels, again.query_labels)
    assert again.class_names == [str(digit) for digit in range(10)]
    assert np.isnan(again.depth).all()
    assert "Nearness in WordNet" in found.notes[0]
    assert "synsets" in found.notes[0]
    assert "One run: no error bars and no t-tests. Add runs that diff" in found.notes[1]
    pictures = {p.stem for p in found.written if p.suffix == ".png"}
    assert pictures == {"figure4a", "figure5a", "figure5c", "figure6", "tsne"}
    tests = (found.folder / "t-tests.csv").read_text()
    assert "one seed: a t-test needs two or more" in tests


def test_embeddings_and_labels_are_of_their_images(run: Callable[..., Path]) -> None:
    from solo_hardneg.data.datasets import load_split, read_image
    from solo_hardneg.data.transforms import plain_pipeline

    (one,) = analyze([run("a")], [*SMALL, "split=val", "batch_size=7"]).studies
    split = load_split(OmegaConf.create({"data": CONFIG["data"]}), train=False)
    model = encoder.load_encoder(Path(one.info["checkpoint"])).encoder
    pipeline = plain_pipeline("digits", SIDE, False)
    for indexes, labels, vectors in (
        (one.query_indexes, one.query_labels, one.query_embeddings),
        (one.negative_indexes, one.negative_labels, one.negative_embeddings),
    ):
        assert [split.targets[i] for i in indexes] == labels.tolist()
        images = torch.stack([pipeline(read_image(split.images[i])) for i in indexes])
        np.testing.assert_allclose(vectors, model(images, "").numpy(), atol=1e-6)


def test_the_seed_determines_a_study(run: Callable[..., Path]) -> None:
    path = run("a")
    augmented = [*SMALL, "views=augmented"]
    plain, one, two, other = (
        analyze([path], settings).studies[0]
        for settings in (SMALL, augmented, [*augmented, "batch_size=9"], [*augmented, "seed=6"])
    )
    np.testing.assert_array_equal(one.query_indexes, plain.query_indexes)
    assert np.abs(one.query_embeddings - plain.query_embeddings).max() > 1e-3
    np.testing.assert_allclose(two.query_embeddings, one.query_embeddings, atol=1e-6)
    np.testing.assert_array_equal(two.shuffled_share, one.shuffled_share)
    assert not np.array_equal(other.query_indexes, one.query_indexes)


def test_the_callers_random_state_is_unchanged(run: Callable[..., Path]) -> None:
    path = run("a")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    analyze([path], [*SMALL, "views=augmented"])
    assert torch.equal(torch.rand(1), expected)


def test_seeds_are_a_group_and_other_settings_another(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [
        run("a1", seed=1, name="a1", data={**CONFIG["data"], "num_workers": 3}),
        run("a2", seed=2, name="a2"),
        run("b1", seed=1, method="simclr", negatives=None),
        run("c1", seed=1, method_kwargs={"temperature": 0.5}),
    ]
    found = analyze([*paths, paths[0].parent], [*SMALL, f"out={tmp_path}/out"])  # one of them twice
    assert {label: len(studies) for label, studies in found.groups.items()} == {
        "MoCo v2: hardest_5, temperature 0.2": 2,
        "SimCLR: all": 1,
        "MoCo v2: hardest_5, temperature 0.5": 1,
    }
    folders = {p.parent.name for p in found.written if p.name == "study.npz"}
    assert folders == {
        "MoCo-v2-hardest_5-temperature-0.2-seed1",
        "MoCo-v2-hardest_5-temperature-0.2-seed2",
        "MoCo-v2-hardest_5-temperature-0.5-seed1",
        "SimCLR-all-seed1",
    }
    tests = pd.read_csv(tmp_path / "out" / "t-tests.csv")
    assert tests["seeds"][0] == 2
    assert 0 <= tests["p"][0] <= 1
    values = pd.read_csv(tmp_path / "out" / "hard-and-easy.csv")
    expected = [s.scalars["same_class/hardest_5"] for s in found.studies]
    np.testing.assert_allclose(values["same_class/hardest_5"], expected)
    percentiles = pd.read_csv(tmp_path / "out" / "percentiles.csv")
    expected = np.concatenate([s.similarity for s in found.studies])
    np.testing.assert_allclose(percentiles["similarity"], expected)
    assert (tmp_path / "out" / "table-A5-correlated-SimCLR-all.csv").is_file()
    for study in found.studies[1:]:  # all see the same images
        np.testing.assert_array_equal(study.query_indexes, found.studies[0].query_indexes)


def test_checkpoints_of_one_run_are_different_groups(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = analyze([run("a", epoch=4), run("a", epoch=9)], SMALL)
    assert [*found.groups] == [
        "MoCo v2: hardest_5, epoch 5",
        "MoCo v2: hardest_5, epoch 10",
    ]
    places = sorted(p for p in found.written if p.name == "study.npz")
    assert places == [tmp_path / "a" / "analysis" / f"a-ep-{e}" / "study.npz" for e in (4, 9)]
    assert found.folder == Path("analysis")


def test_equal_seeds_are_noted(run: Callable[..., Path], tmp_path: Path) -> None:
    found = analyze([run("a"), run("b")], [*SMALL, f"out={tmp_path}/out"])
    text = "MoCo v2: hardest_5: several of these runs have the same seed, so their spread "
    assert f"{text}is meaningless." in found.notes
    assert len(found.groups) == 1
    saved = {p for p in found.written if p.name == "study.npz"}
    assert len(saved) == 2
    assert all(p.is_file() for p in saved)


def test_class_means_of_seeds_count_each_pair_of_images_once(run: Callable[..., Path]) -> None:
    one, two = (analyze([run("a")], [*SMALL, f"seed={seed}"]).studies[0] for seed in (1, 2))
    both = pool_class_means([one, two])
    for a, b in ((0, 1), (3, 3)):
        sums, number = 0.0, 0
        for study in (one, two):
            rows = study.query_embeddings[study.query_labels == a]
            columns = study.negative_embeddings[study.negative_labels == b]
            sums, number = sums + (rows @ columns.T).sum(), number + len(rows) * len(columns)
        assert both.class_mean[a, b] == pytest.approx(sums / number, rel=1e-4)
        assert both.class_number[a, b] == number


# ---------------------------------------------------------------------- what is missing


def test_images_without_labels(run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "flat" / f"{number}.png")
    data = {"dataset": "custom", "train_path": str(tmp_path / "flat"), "no_labels": True}
    found = analyze([run("a", data=data)], ["queries=4", "negatives=8", "percentiles=4"])
    assert "The images have no labels" in found.notes[0]
    pictures = {p.stem for p in found.written if p.suffix == ".png"}
    assert pictures == {"figure5c", "figure6"}  # t-SNE needs five images
    assert "t-SNE is missing: it needs at least five different queries" in found.notes[1]


def test_images_of_one_class(run: Callable[..., Path], tmp_path: Path) -> None:
    train = write_images(tmp_path / "images", per_class=12, classes=1)
    data = {"dataset": "custom", "train_path": str(train)}
    found = analyze([run("a", data=data)], ["queries=5", "negatives=7", "percentiles=4"])
    assert "All images are of one class" in found.notes[0]
    assert {p.stem for p in found.written if p.suffix == ".png"} == {"figure5c", "figure6", "tsne"}
    assert not [p for p in found.written if p.name.startswith("table")]


def test_the_users_synsets_give_depths(
    run: Callable[..., Path], tmp_path: Path, wordnet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solo_hardneg.data.wordnet.cache_folder", lambda: tmp_path / "cache")
    train = write_images(tmp_path / "images", per_class=12, classes=2)
    synsets = tmp_path / "synsets.csv"
    synsets.write_text("class,synset\nclass0,tench.n.01\nclass1,goldfish.n.01\n")
    data = {"dataset": "custom", "train_path": str(train)}
    settings = ["queries=8", "negatives=16", "percentiles=4", "tsne=false", f"synsets={synsets}"]
    (one,) = analyze([run("a", data=data)], settings).studies
    tench = wordnet.synset("tench.n.01")
    goldfish = wordnet.synset("goldfish.n.01")
    shared = max(s.max_depth() for s in tench.lowest_common_hypernyms(goldfish))
    own = {0: tench.max_depth(), 1: goldfish.max_depth()}
    pairs = [
        own[int(q)] if q == n else shared for q in one.query_labels for n in one.negative_labels
    ]
    assert one.scalars["depth/all"] == pytest.approx(np.mean(pairs))


def test_images_of_another_dataset(run: Callable[..., Path], tmp_path: Path) -> None:
    train = write_images(tmp_path / "images", per_class=6, classes=3)
    path = run("a")
    settings = [*SMALL, "data=custom", f"data.train_path={train}"]
    (one,) = analyze([path], settings).studies
    assert one.info["dataset"] == "custom"
    assert one.class_names == ["class0", "class1", "class2"]
    assert one.notes[0].startswith("There are only 18 images: 7 queries and 11 negatives are")


def test_settings_replace_a_missing_args_json(run: Callable[..., Path]) -> None:
    path = run("a", config={})
    given = [*SMALL, "data=digits", "backbone.name=resnet18"]
    (one,) = analyze([path], given).studies
    assert (one.info["method"], one.info["group"]) == (None, str(path))
    with pytest.raises(ConfigError, match=rf"^views=augmented: .*{path}.* Set views=plain.$"):
        analyze([path], [*given, "views=augmented"])
    with pytest.raises(ConfigError, match="backbone.name, data.dataset: unknown for"):
        analyze([path], SMALL)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.format=h5", r"data.format=h5: must be image_folder, .*Set data\."),
        ("data.dataset=svhn", "data.dataset: unknown dataset 'svhn'"),
        ("data=cifar10", "data.train_path=datasets: CIFAR10 isn't in it"),
    ],
)
def test_images_that_cannot_be_read(run: Callable[..., Path], setting: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=f"^{message}"):
        analyze([run("a")], [*SMALL, setting])


def test_an_unknown_device_is_refused(run: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"device=gpux: can't be used \(.*\). Set device=auto."):
        analyze([run("a")], ["device=gpux"])


def test_everything_is_checked_before_anything_is_embedded(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("embedded")

    monkeypatch.setattr(module, "_study_checkpoint", never)
    with pytest.raises(CheckpointError, match="there is no such file. Check the path."):
        analyze([run("a"), tmp_path / "nix.ckpt"], SMALL)
    with pytest.raises(ConfigError, match="analyze: no checkpoint is given. Add the path of"):
        analyze([], SMALL)


def test_a_diverged_encoder_is_refused(run: Callable[..., Path]) -> None:
    path = run("a")
    checkpoint = torch.load(path)
    checkpoint["state_dict"]["projector.0.bias"][:] = torch.nan
    torch.save(checkpoint, path)
    with pytest.raises(DataError, match="not finite: training has diverged. Take an earl"):
        analyze([path], SMALL)


# ---------------------------------------------------------------------- the command


def test_the_command_prints_a_table_and_the_folder(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = run("a")
    done = CliRunner().invoke(app, ["analyze", str(path), *SMALL])
    assert done.exit_code == 0, done.output
    one = load_study(path.parent / "analysis" / "study.npz")
    hard, easy = (one.scalars[f"same_class/{p}"] for p in ("hardest_5", "easiest_95"))
    assert f"{hard:.1%} / {easy:.1%}" in done.output
    assert "- / -" in done.output  # depth
    assert f"Written: {path.parent}/analysis" in done.output
