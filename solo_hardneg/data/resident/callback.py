"""A Lightning callback that fills a host's batches with views made on the device.

The host is not patched. Its loader still gives indexes and labels, in its order and distributed
over processes, but reads no images. Lightning passes the same list to the callbacks and then to the
method, so the method trains on what is put into it here.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from solo_hardneg.data.resident.images import image_sources, load_images
from solo_hardneg.data.resident.recipe import Recipe, linear_recipe, pretrain_recipes
from solo_hardneg.data.resident.views import ResidentViews
from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import DataError, bad_value


def no_views(image: Any) -> list[Any]:
    """Replaces a dataset's transform."""
    return []


def no_image(path: Any) -> None:
    """Replaces a dataset's loader."""


class ResidentData(Callback):
    """Makes the views of ``data.format=resident``; does nothing for other formats.

    Attributes:
        views: Makes the views, from the start of the training.
    """

    def __init__(self) -> None:
        self.views: ResidentViews | None = None
        self._linear = False
        self._filled: Any = None  # the current batch's views
        self._changed: list[tuple[Any, str, Any]] = []  # (dataset, attribute, original value)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops the dataset from making views, before worker processes copy it.

        Both hosts ask for the number of steps when they make their optimizers, and then Lightning
        starts the workers of the first epoch. Its loader is public only later.
        """
        if stage == "fit" and self._is_active(trainer, pl_module):
            source = getattr(trainer.fit_loop, "_data_source", None)
            self._silence(getattr(getattr(source, "instance", None), "dataset", None))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the images onto the device.

        Raises:
            ConfigError: The dataset can't be resident.
            DataError: An image can't be decoded. All ranks raise it.
        """
        if self._is_active(trainer, pl_module):
            all_or_none(lambda: self._load(trainer, pl_module))

    def _load(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader, cfg = trainer.train_dataloader, module_config(pl_module)
        if not isinstance(loader, DataLoader):
            allowed = f"needs a DataLoader for training, not {type(loader).__name__}"
            raise bad_value("data.format", "resident", allowed, "Use data.format=image_folder.")
        dataset = loader.dataset
        if isinstance(dataset, TensorDataset):  # precomputed features have no views
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
            DataError: The batch has another form than those of the hosts' loaders.
        """
        if self.views is None:
            return
        if not isinstance(batch, list) or len(batch) != 3:
            raise DataError(
                "data.format=resident: a batch must be a list of indexes, views and labels, not a "
                f"{type(batch).__name__} of {len(batch)}. Use data.format=image_folder."
            )
        indexes, _, targets = batch
        views = self.views(indexes, trainer.global_rank, trainer.current_epoch, batch_idx)
        # Lightning converted the rest of the batch to the run's precision earlier.
        views = trainer.precision_plugin.convert_input(views)
        batch[:] = [views[0], targets] if self._linear else [indexes, views, targets]
        self._filled = views

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Checks that the method trained on the batch that was filled.

        Raises:
            DataError: Something replaced the batch.
        """
        views, self._filled = self._filled, None
        if views is None:
            return
        arrived = batch[0] is views[0] if self._linear else batch[1] is views
        if not arrived:
            raise DataError(
                "data.format=resident: the views didn't arrive in the training step, because "
                "something replaced the batch. Use data.format=image_folder."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the memory and restores the dataset."""
        self.views = self._filled = None
        for dataset, name, value in reversed(self._changed):
            setattr(dataset, name, value)
        self._changed.clear()

    def _is_active(self, trainer: Trainer, module: Any) -> bool:
        """Whether the run is resident, and this is the first callback of its kind."""
        ours = [c for c in trainer.callbacks if isinstance(c, ResidentData)]  # type: ignore
        resident = OmegaConf.select(module_config(module), "data.format") == "resident"
        return resident and ours[0] is self

    def _silence(self, dataset: Any) -> None:
        if dataset is None or any(dataset is changed for changed, _, _ in self._changed):
            return
        if isinstance(dataset, TensorDataset):
            return
        image_sources(dataset)  # raises if it can't be resident
        instead: dict[str, Any] = {"transform": no_views}
        if hasattr(dataset, "samples"):
            instead["loader"] = no_image
        for name, function in instead.items():
            if hasattr(dataset, name):
                self._changed.append((dataset, name, getattr(dataset, name)))
                setattr(dataset, name, function)


def module_config(module: Any) -> DictConfig:
    """The config of a host's method or linear model; empty for other modules."""
    cfg = getattr(module, "cfg", None)
    return cfg if isinstance(cfg, DictConfig) else OmegaConf.create()


def _recipes(cfg: DictConfig, linear: bool, standalone: bool) -> list[Recipe]:
    if linear:
        return [linear_recipe(cfg.data.dataset, cfg.data.augmentations.crop_size)]
    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    return pretrain_recipes(cfg.data.dataset, entries, cut=standalone)
