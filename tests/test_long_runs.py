"""Ten thousand steps with the recorder on: the process gets no larger."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from integration_helpers import run_python

pytestmark = pytest.mark.full

STEPS, WARM_UP = 500, 4  # of an epoch; epochs after which memory is full


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def train(epochs: int, folder: Path, leak: int) -> list[int]:
    """Trains MoCo on noise; the process's bytes after each epoch.

    Args:
        epochs: of ``STEPS`` steps.
        folder: where the records go.
        leak: bytes to lose at each step, to see that a leak is seen.
    """
    import gc

    import torch
    from hydra import compose, initialize_config_module
    from lightning.pytorch import Callback, Trainer
    from omegaconf import OmegaConf
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from solo_hardneg import standalone
    from solo_hardneg.analysis.recorder import Recorder
    from solo_hardneg.methods import OUR_METHODS
    from solo_hardneg.standalone.config import parse_pretrain

    standalone.base.build_backbone = lambda *_: (  # type: ignore[attr-defined]
        nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16)),
        16,
    )
    overrides = [
        *("data=digits", "optimizer.batch_size=8", "method_kwargs.proj_hidden_dim=16"),
        *("method_kwargs.proj_output_dim=8", f"max_epochs={epochs}", "hardness.enabled=true"),
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

    found: list[int] = []
    lost: list[bytes] = []

    class Look(Callback):
        def on_train_batch_end(self, *_: object, **__: object) -> None:
            if leak:
                lost.append(b"x" * leak)

        def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
            gc.collect()
            found.append(resident())

    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[Recorder(), Look()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        OUR_METHODS["mocov2_banded"](cfg), DataLoader(Noise(), 8, shuffle=True, drop_last=True)
    )
    assert trainer.global_step == epochs * STEPS
    return found


def growth(found: list[int]) -> float:
    """Of the largest after the warm-up, beyond what there was then, as a share of that."""
    return max(found[WARM_UP:]) / found[WARM_UP - 1] - 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells")
@pytest.mark.parametrize(("epochs", "leak"), [(20, 0), (7, 20_000)])
def test_memory_stays_within_one_percent(tmp_path: Path, epochs: int, leak: int) -> None:
    result = run_python(
        *(Path(__file__), epochs, tmp_path / "records", leak),
        cwd=tmp_path,
        env={"SOLO_HARDNEG_HOST": "standalone", "MALLOC_TRIM_THRESHOLD_": "0"},
        timeout=1200,
    ).ok()
    found = json.loads(result.out.splitlines()[-1])
    assert len(found) == epochs
    assert len(list((tmp_path / "records").rglob("*.parquet"))) == epochs
    assert (growth(found) > 0.01) == bool(leak), found  # a leak of 20 kB a step is seen


if __name__ == "__main__":
    print(json.dumps(train(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
