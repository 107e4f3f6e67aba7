"""The memory of ten thousand recorded steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from integration_helpers import run_python

pytestmark = pytest.mark.full

# Epochs, steps per epoch, and epochs until memory stops growing. In the remaining 8,000 steps, a
# leak of a kilobyte, less than one tensor, adds more than 1 % to the process.
EPOCHS, STEPS, WARM_UP = 20, 500, 4


def resident_bytes() -> int:
    """The resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def train(folder: Path) -> list[int]:
    """Trains MoCo on noise with records; returns the process's bytes after each epoch."""
    import gc

    import torch
    from hydra import compose, initialize_config_module
    from lightning.pytorch import Callback, Trainer
    from omegaconf import OmegaConf
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from solo_hardneg import standalone
    from solo_hardneg.methods import OUR_METHODS
    from solo_hardneg.recording.recorder import Recorder
    from solo_hardneg.standalone.config import parse_pretrain

    standalone.base.build_backbone = lambda *_: (  # type: ignore[attr-defined]
        nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16)),
        16,
    )
    overrides = [
        *("data=digits", "optimizer.batch_size=8", "method_kwargs.proj_hidden_dim=16"),
        *("method_kwargs.proj_output_dim=8", f"max_epochs={EPOCHS}", "hardness.enabled=true"),
        *("hardness.every_n_steps=20", f"hardness.dir={folder}", "negatives=hardest_5"),
        "method_kwargs.queue_size=64",
    ]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = parse_pretrain(compose("mocov2_banded", overrides))
    OmegaConf.set_struct(cfg, False)

    class Noise(Dataset):
        def __len__(self) -> int:
            return 8 * STEPS

        def __getitem__(self, index: int) -> tuple[int, list[torch.Tensor], int]:
            return index, [torch.randn(3, 8, 8), torch.randn(3, 8, 8)], index % 10

    sizes: list[int] = []

    class MeasureMemory(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
            gc.collect()
            sizes.append(resident_bytes())

    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[Recorder(), MeasureMemory()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        OUR_METHODS["mocov2_banded"](cfg), DataLoader(Noise(), 8, shuffle=True, drop_last=True)
    )
    assert trainer.global_step == EPOCHS * STEPS
    return sizes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_grows_by_less_than_one_percent(tmp_path: Path) -> None:
    result = run_python(
        *(Path(__file__), tmp_path / "records"),
        cwd=tmp_path,
        env={"SOLO_HARDNEG_HOST": "standalone", "MALLOC_TRIM_THRESHOLD_": "0"},
        timeout=1200,
    ).ok()
    sizes = json.loads(result.out.splitlines()[-1])
    assert len(list((tmp_path / "records").rglob("*.parquet"))) == len(sizes) == EPOCHS
    assert max(sizes[WARM_UP:]) < 1.01 * sizes[WARM_UP - 1], sizes


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]))))
