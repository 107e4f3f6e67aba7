"""``data.format=resident`` in whole runs of both hosts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from integration_helpers import (
    Job,
    Result,
    only_checkpoint,
    run_in_one_process,
    run_python,
)
from omegaconf import DictConfig, OmegaConf
from resident_helpers import ENTRY, load_labels
from tiny_backbone import build_tiny, use_tiny
from torchvision.datasets import ImageFolder

from solo_hardneg import standalone
from solo_hardneg.data.datasets import load_split
from solo_hardneg.data.resident.images import load_images
from solo_hardneg.data.resident.recipe import pretrain_recipes
from solo_hardneg.data.resident.views import ResidentViews
from solo_hardneg.standalone import LinearModel
from solo_hardneg.standalone.run import linear, pretrain

CPU = torch.device("cpu")
MULTI_CROP = [
    {**ENTRY, "num_crops": 2},
    {
        **{name: {"prob": 0.0} for name in ENTRY if name not in ("rrc", "crop_size", "num_crops")},
        "rrc": {"enabled": True, "crop_min_scale": 0.05, "crop_max_scale": 0.2},
        "crop_size": 16,
        "num_crops": 2,
    },
]

# ---------------------------------------------------------------------- the standalone host


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)


def config(name: str, folder: Path, *overrides: str) -> DictConfig:
    chosen = [
        *("data.format=resident", "optimizer.batch_size=16", "accelerator=cpu", "max_epochs=2"),
        *("scheduler.warmup_epochs=0", f"checkpoint.dir={folder}/runs", *overrides),
        *("+enable_progress_bar=false", "+enable_model_summary=false"),
    ]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        return compose(name, chosen)


def test_standalone_pretraining_on_digits(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    step = standalone.BaseMethod.training_step

    def watched(self: Any, batch: Any, batch_idx: int) -> Any:
        steps.append((self.trainer.current_epoch, batch_idx, list(batch)))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(standalone.BaseMethod, "training_step", watched)
    cfg = config("simclr", tmp_path, "data=digits", "++limit_train_batches=3")
    result = pretrain(cfg)
    assert result.metrics["val_acc1"] >= 0  # validation is unchanged
    assert len(steps) == 6
    split = load_split(cfg, train=True)
    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    images = torch.stack([torch.from_numpy(image) for image in split.images]).permute(0, 3, 1, 2)
    views = ResidentViews(images.contiguous(), pretrain_recipes("digits", entries, True), cfg.seed)
    for epoch, number, (indexes, made, targets) in steps:
        assert targets.tolist() == [split.targets[i] for i in indexes]
        for a, b in zip(made, views(indexes, 0, epoch, number), strict=True):
            assert torch.equal(a, b)


def evaluate(tmp_path: Path, *overrides: str) -> Any:
    """Linear evaluation of an untrained backbone."""
    weights = {f"backbone.{key}": value for key, value in build_tiny()[0].state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "pretrained.ckpt")
    extractor = f"pretrained_feature_extractor={tmp_path}/pretrained.ckpt"
    more = (extractor, "knn_eval.enabled=false", "+limit_train_batches=2")
    return linear(config("linear", tmp_path, *overrides, *more, "max_epochs=1"))


def test_standalone_linear_evaluation(
    tiny: None, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Any] = []
    step = LinearModel.training_step

    def watched(self: Any, batch: Any, batch_idx: int) -> Any:
        batches.append(list(batch))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LinearModel, "training_step", watched)
    paths = (f"data.train_path={folder}", f"data.val_path={folder}", "optimizer.batch_size=8")
    result = evaluate(tmp_path, "data=custom", "data.suggest.crop_size=16", *paths)
    assert result.metrics["val_acc1"] >= 0
    assert [tuple(views.shape) for views, _ in batches] == [(8, 3, 16, 16)] * 2
    assert not torch.equal(batches[0][0], batches[1][0])
    assert all(targets.shape == (8,) for _, targets in batches)


def test_standalone_linear_evaluation_on_digits_needs_no_views(tiny: None, tmp_path: Path) -> None:
    assert evaluate(tmp_path, "data=digits").metrics["val_acc1"] >= 0


@pytest.mark.full
def test_two_processes_have_different_images_and_views(tmp_path: Path, folder: Path) -> None:
    here, tests = Path(__file__).parent, Path(__file__).parents[2]
    env = {"PYTHONPATH": f"{here}:{tests}"}
    run_python(here / "two_ranks.py", folder, tmp_path, cwd=tmp_path, env=env).ok()
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [[len(batch) for batch in batches] for batches in seen] == [[4] * 3] * 2
    assert sorted(i for batches in seen for batch in batches for i in batch) == list(range(24))


# ---------------------------------------------------------------------- solo-learn


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("solo_learn")
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def in_solo_learn(solo_learn: Path, outputs: Path, folder: Path) -> dict[str, Result]:
    """Results of several runs of an unmodified solo-learn, in one process."""
    main = solo_learn / "main_pretrain.py"
    flat = outputs / "unlabelled"
    flat.mkdir()
    for file in folder.rglob("*.png"):
        shutil.copy(file, flat)
    (outputs / "configs" / "augmentations").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(MULTI_CROP), outputs / "configs/augmentations/multi.yaml")
    small = [
        *("data=custom", "data.format=resident", f"data.train_path={folder}", "data.val_path=null"),
        *("data.suggest.crop_size=32", "optimizer.batch_size=8", "auto_resume.enabled=False"),
        *("method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=8", "accelerator=cpu"),
    ]
    moco = ["--config-name", "mocov2_banded", *small, "method_kwargs.queue_size=32"]
    multi = ["--config-dir", outputs / "configs", "--config-name", "simclr", *small]
    runs = {
        "multi_crop": [*multi, "augmentations=multi", "max_epochs=2"],
        "unlabelled": [*moco, "++data.no_labels=True", f"data.train_path={flat}", "max_epochs=1"],
    }
    jobs = {}
    for name, arguments in runs.items():
        workers = 2 if name == "multi_crop" else 0
        watch = "+hydra.callbacks.batches"
        more = [f"{watch}._target_=watching_batches.Batches", f"{watch}.file={outputs / name}.log"]
        more += [f"checkpoint.dir={outputs / name}", f"data.num_workers={workers}"]
        jobs[name] = Job(main, [*arguments, *more])
    here = str(Path(__file__).parent)
    return run_in_one_process(jobs, cwd=outputs, env={"PYTHONPATH": here})


def log_of(outputs: Path, name: str) -> tuple[list[Any], list[Any]]:
    """The logged steps, and the images that were read."""
    lines = [json.loads(line) for line in (outputs / f"{name}.log").read_text().splitlines()]
    return [x for x in lines if "epoch" in x], [x for x in lines if "read" in x]


@pytest.mark.full
@pytest.mark.host
def test_solo_learn_trains_on_the_views(
    in_solo_learn: dict[str, Result], outputs: Path, folder: Path
) -> None:
    """With multi-crop, worker processes, and solo-learn's SimCLR."""
    in_solo_learn["multi_crop"].ok()
    steps, read = log_of(outputs, "multi_crop")
    assert len(steps) == 6
    dataset = ImageFolder(str(folder))
    labels = load_labels(dataset)
    checkpoint = only_checkpoint(outputs / "multi_crop")
    cfg = json.loads((checkpoint.parent / "args.json").read_text())
    recipes = pretrain_recipes("custom", cfg["augmentations"], cut=False)
    views = ResidentViews(load_images(dataset, CPU), recipes, cfg["seed"])
    for step in steps:
        indexes = torch.tensor(step["indexes"])
        assert step["targets"] == labels[indexes].tolist()
        assert step["shapes"] == [[8, 3, 32, 32]] * 2 + [[8, 3, 16, 16]] * 2
        expected = views(indexes, 0, step["epoch"], step["batch"])
        means = torch.stack([view.mean(dim=(1, 2, 3)) for view in expected])
        torch.testing.assert_close(torch.tensor(step["means"]), means, atol=1e-4, rtol=0)
    assert len(read) == 24 + 1  # the first is read again for its size
    assert not any(image["by_worker"] for image in read)


@pytest.mark.full
@pytest.mark.host
def test_solo_learn_without_labels(in_solo_learn: dict[str, Result], outputs: Path) -> None:
    in_solo_learn["unlabelled"].ok()
    steps, _ = log_of(outputs, "unlabelled")
    assert [step["targets"] for step in steps] == [[-1] * 8] * 3
