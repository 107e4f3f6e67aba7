"""The Lightning callback that fills a host's batches with views made on the device.

Nothing of the host is patched. Its loader goes on handing over indexes and labels, in its own
order and shared out over processes as always; only the images are no longer read. Lightning hands
the list that is a batch to the callbacks first and to the method then, so what is put into it here
is what the method trains on.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import DataError, bad_value
from solo_hardneg.resident.images import image_sources, load_images
from solo_hardneg.resident.recipe import Recipe, linear_recipe, pretrain_recipes
from solo_hardneg.resident.views import ResidentViews


def make_nothing(image: Any) -> list[Any]:
    """In the place of a dataset's transform: no views."""
    return []


def read_nothing(path: Any) -> None:
    """In the place of a dataset's loader: no image."""


class ResidentData(Callback):
    """Makes the views of ``data.format=resident``; with any other format it does nothing.

    Attributes:
        views: what makes them, from the start of the training on.
    """

    def __init__(self) -> None:
        self.views: ResidentViews | None = None
        self._linear = False
        self._seen: Any = None  # what was put into the batch at hand
        self._changed: list[tuple[Any, str, Any]] = []  # (dataset, attribute, what it was)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops the dataset from making views, before worker processes get their copies of it.

        Both hosts ask for the number of steps when they make their optimizers, and Lightning starts
        the workers of the first epoch then. It shows its loader only after that.
        """
        if stage == "fit" and self._acts(trainer, pl_module):
            source = getattr(trainer.fit_loop, "_data_source", None)
            self._silence(getattr(getattr(source, "instance", None), "dataset", None))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the images on the device.

        Raises:
            ConfigError: the dataset can't be resident.
            DataError: an image can't be decoded. All ranks raise it.
        """
        if self._acts(trainer, pl_module):
            all_or_none(lambda: self._load(trainer, pl_module))

    def _load(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader, cfg = trainer.train_dataloader, config_of(pl_module)
        if not isinstance(loader, DataLoader):
            allowed = f"needs a DataLoader for training, not {type(loader).__name__}"
            do = "Use data.format=image_folder."
            raise bad_value("data.format", "resident", allowed, do)
        dataset = loader.dataset
        if isinstance(dataset, TensorDataset):  # features, computed once: there are no views
            return
        self._silence(dataset)
        standalone = hasattr(dataset, "split")
        self._linear = not OmegaConf.is_list(cfg.get("augmentations"))
        recipes = _recipes(cfg, self._linear, standalone)
        images = load_images(dataset, pl_module.device)
        self.views = ResidentViews(images, recipes, int(cfg.get("seed") or 0))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Puts the views into the batch.

        Raises:
            DataError: the batch isn't what the hosts' loaders make.
        """
        if self.views is None:
            return
        if not isinstance(batch, list) or len(batch) != 3:
            raise DataError(
                "data.format=resident: a batch must be a list of indexes, views and labels, not a "
                f"{type(batch).__name__} of {len(batch)}. Use data.format=image_folder."
            )
        indexes, _, targets = batch
        place = trainer.global_rank, trainer.current_epoch, batch_idx
        views = self.views(indexes, *place)
        # Lightning has converted what came with the batch, for half precision, but not these.
        views = trainer.precision_plugin.convert_input(views)
        batch[:] = [views[0], targets] if self._linear else [indexes, views, targets]
        self._seen = views

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Makes sure that the batch which was trained on is the one that was filled."""
        views, self._seen = self._seen, None
        if views is None:
            return
        arrived = batch[0] is views[0] if self._linear else batch[1] is views
        if not arrived:
            raise DataError(
                "data.format=resident: the views didn't arrive in the training step, because "
                "something has put another batch in the place of this one. Use "
                "data.format=image_folder."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the memory and the dataset back as they were."""
        self.views = self._seen = None
        for dataset, name, value in reversed(self._changed):
            setattr(dataset, name, value)
        self._changed.clear()

    def _acts(self, trainer: Trainer, module: Any) -> bool:
        """Whether the views are wanted, and of this callback: a user may have added one more."""
        ours = [c for c in trainer.callbacks if isinstance(c, ResidentData)]  # type: ignore
        return wanted(module) and ours[0] is self

    def _silence(self, dataset: Any) -> None:
        if dataset is None or any(dataset is changed for changed, _, _ in self._changed):
            return
        if isinstance(dataset, TensorDataset):
            return
        image_sources(dataset)  # raises if it can't be resident
        instead: dict[str, Any] = {"transform": make_nothing}
        if hasattr(dataset, "samples"):
            instead["loader"] = read_nothing
        for name, function in instead.items():
            if hasattr(dataset, name):
                self._changed.append((dataset, name, getattr(dataset, name)))
                setattr(dataset, name, function)


def config_of(module: Any) -> DictConfig:
    """The config of a method or a linear model of a host; empty for any other module."""
    cfg = getattr(module, "cfg", None)
    return cfg if isinstance(cfg, DictConfig) else OmegaConf.create()


def wanted(module: Any) -> bool:
    """Whether a module's config asks for resident images."""
    return OmegaConf.select(config_of(module), "data.format") == "resident"


def _recipes(cfg: DictConfig, linear: bool, standalone: bool) -> list[Recipe]:
    if linear:
        return [linear_recipe(cfg.data.dataset, cfg.data.augmentations.crop_size)]
    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    return pretrain_recipes(cfg.data.dataset, entries, cut=standalone)
