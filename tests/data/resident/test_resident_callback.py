"""The resident callback in runs of Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf
from resident_helpers import ENTRY, load_labels, to_pil
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.datasets import folder as torchvisions
from torchvision.transforms.functional import to_tensor

from solo_hardneg import plugin
from solo_hardneg.data import images
from solo_hardneg.data.resident.callback import ResidentData
from solo_hardneg.data.resident.images import load_images
from solo_hardneg.data.resident.recipe import pretrain_recipes
from solo_hardneg.data.resident.views import ResidentViews
from solo_hardneg.errors import ConfigError, DataError

ENTRIES = [{**ENTRY, "crop_size": 16, "num_crops": 1}, {**ENTRY, "crop_size": 8, "num_crops": 2}]
SEED = 7


class Indexed(ImageFolder):
    """Items (index, views, target), as in solo-learn."""

    def __getitem__(self, index: int) -> Any:
        return index, *super().__getitem__(index)


class Method(LightningModule):
    """Stores the batches it is trained on."""

    def __init__(self, data_format: str = "resident", **more: Any) -> None:
        super().__init__()
        data = {"format": data_format, "dataset": "custom"}
        self.cfg = OmegaConf.create({"data": data, "augmentations": ENTRIES, "seed": SEED, **more})
        self.layer = nn.Linear(3, 1)
        self.steps: list[tuple[int, int, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps.append((self.trainer.current_epoch, batch_idx, batch))
        return self.layer(batch[1][0].mean(dim=(2, 3))).mean()

    def configure_optimizers(self) -> Any:
        _ = self.trainer.estimated_stepping_batches  # as in both hosts; starts the workers
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(*callbacks: Any, epochs: int = 2, **more: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    more = {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1, **more}
    return Trainer(max_epochs=epochs, callbacks=list(callbacks), **quiet, **more)


@pytest.fixture(autouse=True)
def no_callbacks_of_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_hardneg.plugin._registered", False)


@pytest.fixture
def dataset(folder: Path) -> Indexed:
    return Indexed(str(folder), transform=lambda image: [to_tensor(image)] * 3)


@pytest.fixture
def check(folder: Path) -> Callable[[list[tuple[int, int, Any]]], None]:
    """Checks the indexes, labels and views of batches."""
    plain = ImageFolder(str(folder))
    views = ResidentViews(
        load_images(plain, torch.device("cpu")), pretrain_recipes("custom", ENTRIES, False), SEED
    )
    labels = load_labels(plain)

    def check(steps: list[tuple[int, int, Any]], rank: int = 0) -> None:
        for epoch, number, (indexes, made, targets) in steps:
            assert torch.equal(targets, labels[indexes])
            expected = views(indexes, rank, epoch, number)
            assert len(made) == len(expected) == 3
            assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))

    return check


def loader_of(dataset: Any, workers: int = 0, batch: int = 8, **more: Any) -> DataLoader:
    return DataLoader(
        dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True, **more
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_method_trains_on_the_views_and_images_are_read_once(
    dataset: Indexed, workers: int, check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, log = images.open_rgb, tmp_path / "read"

    def logged(path: str) -> Any:
        with log.open("a") as file:
            file.write(f"{path}\n")
        return read(path)

    monkeypatch.setattr(images, "open_rgb", logged)
    monkeypatch.setattr(torchvisions, "pil_loader", logged)
    before = dataset.transform, dataset.loader
    method, callback = Method(), ResidentData()
    make_trainer(callback).fit(method, loader_of(dataset, workers))
    places = [(epoch, number) for epoch, number, _ in method.steps]
    assert places == [(epoch, number) for epoch in range(2) for number in range(3)]
    for epoch in range(2):
        seen = torch.cat([batch[0] for e, _, batch in method.steps if e == epoch])
        assert seen.sort().values.tolist() == list(range(24))

    lines = log.read_text().splitlines()
    lines.remove(dataset.samples[0][0])  # read twice, first for its size
    assert sorted(lines) == sorted(path for path, _ in dataset.samples)
    assert (dataset.transform, dataset.loader) == before
    assert callback.views is None
    check(method.steps)


def test_a_resumed_run_continues_with_the_views_of_its_epoch(
    dataset: Indexed, tmp_path: Path, check: Any
) -> None:
    trainer = make_trainer(ResidentData(), epochs=1)
    trainer.fit(Method(), loader_of(dataset))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    method = Method()
    second = make_trainer(ResidentData(), epochs=2)
    second.fit(method, loader_of(dataset), ckpt_path=str(tmp_path / "first.ckpt"))
    assert {epoch for epoch, _, _ in method.steps} == {1}
    check(method.steps)


def test_views_have_the_runs_precision(dataset: Indexed) -> None:
    method = Method()
    make_trainer(ResidentData(), epochs=1, precision="bf16-true").fit(method, loader_of(dataset))
    assert {view.dtype for _, _, batch in method.steps for view in batch[1]} == {torch.bfloat16}


def test_ranks_have_different_views(folder: Path, check: Any) -> None:
    callback, plain = ResidentData(), ImageFolder(str(folder))
    images = load_images(plain, torch.device("cpu"))
    callback.views = ResidentViews(images, pretrain_recipes("custom", ENTRIES, False), SEED)
    precision = SimpleNamespace(convert_input=lambda data: data)
    trainer: Any = SimpleNamespace(global_rank=1, current_epoch=4, precision_plugin=precision)
    batch = [torch.tensor([3, 9]), [], load_labels(plain)[[3, 9]]]
    callback.on_train_batch_start(trainer, Method(), batch, 5)
    check([(4, 5, batch)], rank=1)
    with pytest.raises(AssertionError):
        check([(4, 5, batch)], rank=0)


def test_other_formats_are_ignored(dataset: Indexed) -> None:
    method = Method("image_folder")
    make_trainer(ResidentData(), epochs=1).fit(method, loader_of(dataset))
    for _, _, (indexes, views, _) in method.steps:
        assert torch.equal(
            views[0][0], to_tensor(to_pil(load_images(dataset, torch.device("cpu"))[indexes[0]]))
        )


def test_a_second_callback_does_nothing(dataset: Indexed, check: Any) -> None:
    method = Method()
    make_trainer(ResidentData(), ResidentData(), epochs=1).fit(method, loader_of(dataset))
    check(method.steps)


def test_the_plugin_adds_it_before_the_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin.callbacks() == []
    monkeypatch.setattr("solo_hardneg.plugin._registered", True)
    names = [type(callback).__name__ for callback in plugin.callbacks()]
    assert names.index("ResidentData") < names.index("Recorder")


def as_tuple(items: list[Any]) -> tuple[Any, ...]:
    return tuple(torch.tensor([item[i] for item in items]) for i in (0, 2))


def test_other_forms_of_batches_are_refused(dataset: Indexed) -> None:
    loader = loader_of(dataset, collate_fn=as_tuple)
    with pytest.raises(DataError, match=r"data\.format=resident: a batch must be a list.*tuple"):
        make_trainer(ResidentData()).fit(Method(), loader)


def test_several_loaders_are_refused(dataset: Indexed) -> None:
    with pytest.raises(ConfigError, match=r"resident: needs a DataLoader for training, not list"):
        make_trainer(ResidentData()).fit(Method(), [loader_of(dataset), loader_of(dataset)])


def test_other_datasets_are_refused_in_a_run() -> None:
    pairs: Any = [(i, torch.zeros(3), 0) for i in range(8)]
    with pytest.raises(ConfigError, match=r"resident: reads CIFAR and folders of images, not list"):
        make_trainer(ResidentData()).fit(Method(), loader_of(pairs))


def test_a_replaced_batch_is_an_error(dataset: Indexed) -> None:
    class Swaps(ResidentData):
        """Replaces the batch."""

        def on_train_batch_end(
            self, trainer: Any, module: Any, out: Any, batch: Any, i: int
        ) -> None:
            super().on_train_batch_end(trainer, module, out, [*batch[:1], [], *batch[2:]], i)

    with pytest.raises(DataError, match=r"the views didn't arrive in the training step"):
        make_trainer(Swaps()).fit(Method(), loader_of(dataset))
