"""The check of shared memory before worker processes start."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from solo_hardneg.data import loader as module
from solo_hardneg.data.loader import CheckedLoader
from solo_hardneg.errors import ConfigError

VIEW = 3 * 32 * 32 * 4


class Views(torch.utils.data.Dataset):
    """Items (index, two views, label), with random numbers as in augmentations."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        noise = torch.rand(1) + random.random() + np.random.rand()
        return index, [torch.zeros(3, 32, 32) + noise, torch.zeros(3, 32, 32)], 1


class Method(LightningModule):
    def training_step(self, batch, batch_idx):
        raise AssertionError("there is no batch")

    def configure_optimizers(self):
        return None


@pytest.fixture
def free(monkeypatch):
    """``free(bytes, total)`` sets the size of shared memory."""

    def set_free(number, total=2**40):
        stat = SimpleNamespace(f_bavail=number, f_blocks=total, f_frsize=1)
        monkeypatch.setattr(module.os, "statvfs", lambda _: stat)

    return set_free


# 40 images of two views; indexes and labels take a page each
BATCH = 40 * 2 * VIEW + 2 * 4096


@pytest.mark.parametrize(("images", "batches"), [(400, 5), (120, 3)])
def test_too_little_memory_is_refused_to_the_byte(free, images, batches):
    """Two batches per worker and the trainer's one, at most those of the dataset."""
    dataset = torch.utils.data.Subset(Views(), range(images))
    loader = CheckedLoader(dataset, batch_size=40, num_workers=2)
    needed = batches * BATCH + 2 * 64 * 1024
    free(needed - 1)
    with pytest.raises(ConfigError) as error:
        next(iter(loader))
    text = str(error.value)
    assert text.startswith("data.num_workers=2: ")
    assert f"up to {batches} of {BATCH / 2**10:.3g} KiB at once" in text
    assert f"/dev/shm has {needed / 2**20:.3g} MiB free" in text
    assert "--shm-size" in text
    assert "data.num_workers=0" in text
    free(needed)
    assert len(next(iter(loader))[1]) == 2


def test_without_workers_nothing_is_checked(free):
    free(0)
    assert len(list(CheckedLoader(Views(), batch_size=40))) == 10


def test_processes_of_one_machine_share_memory(free, monkeypatch):
    monkeypatch.setattr(module, "get_world_size", lambda: 4)
    for gpus, here in ((0, 4), (2, 2), (8, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        own = BATCH * 5 + 2 * 64 * 1024
        free(own, here * own - 1)
        with pytest.raises(ConfigError, match=rf"in each of {here} processes, .* MiB in all\."):
            module.check_shared_memory("data.num_workers", 2, 5, BATCH)
        free(own, here * own)  # the others have started before
        module.check_shared_memory("data.num_workers", 2, 5, BATCH)


def test_a_loader_is_checked_only_once(free):
    loader = CheckedLoader(Views(), batch_size=40, num_workers=1)
    free(2**30)
    first = iter(loader)
    free(0)
    assert len(next(iter(loader))[1]) == 2
    assert len(next(first)[1]) == 2


def test_unlimited_memory_is_accepted(free):
    free(0, 0)
    module.check_shared_memory("data.num_workers", 2, 5, BATCH)


def test_measuring_leaves_random_generators_alone():
    def state():
        return torch.rand(1).item(), random.random(), np.random.rand()

    def seed():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    seed()
    expected = state()
    seed()
    CheckedLoader(Views(), batch_size=40, num_workers=1)._batch_bytes()
    assert state() == expected


def test_lightning_shows_the_error(free):
    """Lightning replaces errors of iter()."""
    free(0)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="data.num_workers=1: .*/dev/shm has 0 KiB free"):
        trainer.fit(Method(), CheckedLoader(Views(), batch_size=40, num_workers=1))
