"""NVIDIA DALI in both hosts: what it needs, and solo-learn's loader on machines without a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.errors import bad_value

DEVICES = ("gpu", "cpu")
_BUILDERS = ("PretrainPipelineBuilder", "NormalPipelineBuilder", "CustomNormalPipelineBuilder")


def is_installed() -> bool:
    """Whether DALI can be imported."""
    return importlib.util.find_spec("nvidia") is not None and (
        importlib.util.find_spec("nvidia.dali") is not None
    )


def has_dummy_indexes(cfg: DictConfig) -> bool:
    """Whether the indexes of a batch say nothing of where its images are in the dataset."""
    encoded = OmegaConf.select(cfg, "dali.encode_indexes_into_labels", default=False)
    return OmegaConf.select(cfg, "data.format") == "dali" and not encoded


def check_dali(cfg: DictConfig) -> None:
    """Refuses ``data.format=dali`` where DALI can't run; with any other format it does nothing.

    Raises:
        ConfigError: DALI isn't installed, or has no GPU or no threads.
    """
    if OmegaConf.select(cfg, "data.format") != "dali":
        return
    if not is_installed():
        do = "pip install 'solo-hardneg[dali-cuda130]' (or dali-cuda120), or use image_folder."
        raise bad_value("data.format", "dali", "needs nvidia-dali, which isn't installed", do)
    check_resources(
        OmegaConf.select(cfg, "dali.device", default="gpu"),
        OmegaConf.select(cfg, "data.num_workers", default=4),
    )


def check_resources(device: Any, threads: Any) -> None:
    """Refuses a GPU that isn't there, and pipelines without threads.

    Raises:
        ConfigError: it names the key.
    """
    if device not in DEVICES:
        raise bad_value("dali.device", device, "must be gpu or cpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise bad_value("dali.device", device, "there is no GPU here", "Set dali.device=cpu.")
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        allowed = "must be a whole number above 0 with data.format=dali, which has so many threads"
        raise bad_value("data.num_workers", threads, allowed)


def extend_solo_learn() -> None:
    """Lets solo-learn's DALI loaders run on machines without a GPU, by ``dali.device=cpu``.

    Its builders give every pipeline the number of a GPU, also those that use none. Its data modules
    look the builders up in their module when training begins, so ours are put there, which take
    that number away again, and say by our errors what can't be. Where there is a GPU, all that they
    do is to refuse what isn't a device, or no threads. Nothing happens where DALI isn't installed.
    Calling it again is harmless.
    """
    try:
        module = importlib.import_module("solo.data.dali_dataloader")
    except ImportError:  # solo-learn does without it then
        return
    for name in _BUILDERS:
        builder = getattr(module, name, None)
        if builder is not None and not issubclass(builder, _OnTheCpu):
            _replace(module, name, builder)


class _OnTheCpu:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_resources(getattr(self, "device", None), getattr(self, "num_threads", None))
        if not torch.cuda.is_available():  # only now, for __init__ adds the number to the seed
            self.device_id = None


def _replace(module: ModuleType, name: str, builder: type) -> None:
    extended = type(name, (_OnTheCpu, builder), {"__doc__": builder.__doc__})
    setattr(module, name, extended)
