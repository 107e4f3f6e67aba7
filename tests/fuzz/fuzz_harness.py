"""Runs a config in this process within limits, and returns its outcome."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg import plugin
from solo_hardneg.errors import HardnegError

_BATCHES = 12  # at most, before a run has made two steps
_MEMORY = 6 * 2**30  # bytes that a run may allocate
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


class EnoughError(BaseException):
    """The run needs many batches or other processes."""


class TwoSteps(Callback):
    """Ends a run after two optimizer steps, and collects the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is not None:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            self.losses.append(float(loss))
        if trainer.global_step >= 2:
            trainer.should_stop = True
        if len(self.losses) >= _BATCHES:
            raise EnoughError("many batches")


def _no_processes(launcher: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise EnoughError("several processes")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@contextlib.contextmanager
def harmless(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[TwoSteps]:
    """Limits runs to two steps and a few gigabytes, without network or other processes."""
    import torch.distributed
    from lightning.pytorch.strategies.launchers import multiprocessing, subprocess_script

    watch = TwoSteps()
    own = plugin.callbacks
    deterministic = torch.are_deterministic_algorithms_enabled()
    dtype = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(plugin, "callbacks", lambda: [*own(), watch])
        for name, value in {**_ENVIRONMENT, **(environment or {})}.items():
            patch.setenv(name, value)
        script = subprocess_script._SubprocessScriptLauncher
        patch.setattr(script, "launch", _no_processes)
        patch.setattr(multiprocessing._MultiProcessingLauncher, "launch", _no_processes)
        patch.setattr(torch.distributed, "init_process_group", _no_processes)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _MEMORY, limits[1]))
        try:
            yield watch
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
            torch.use_deterministic_algorithms(deterministic)
            torch.set_default_dtype(dtype)


def outcome(
    job: Callable[[Any], Any],
    config: Any,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a config of plain values; returns ``trained``, ``refused: MESSAGE`` and the like.

    Raises:
        Exception: Any error but a HardnegError, and AssertionError for a non-finite loss.
    """
    try:
        cfg = OmegaConf.create(config)
    except OmegaConfBaseException:
        return "no config"
    OmegaConf.set_struct(cfg, False)
    with harmless(folder, environment) as watch:
        try:
            result = job(cfg)
        except HardnegError as error:
            return f"refused: {error}"
        except EnoughError as error:
            end = str(error)
        else:
            end = "trained" if watch.losses else "nothing to train"
            losses = [
                v for k, v in result.metrics.items() if k.startswith("train_") and "loss" in k
            ]
            assert all(map(math.isfinite, losses)), result.metrics
    assert all(map(math.isfinite, watch.losses)), f"losses {watch.losses}"
    return end
