"""A real run of the standalone host, pretrained and studied in this process."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_module

from solo_hardneg.standalone.run import pretrain
from solo_hardneg.study.analyze import analyze


# 4 s: it trains a run and embeds its images.
def test_an_untrained_network_finds_like_digits_alike(tmp_path: Path) -> None:
    small = [
        *("data=digits", "max_epochs=1", "++limit_train_batches=2", "++limit_val_batches=1"),
        *("optimizer.batch_size=16", "method_kwargs.queue_size=32", "scheduler.warmup_epochs=0"),
        *("accelerator=cpu", "+enable_progress_bar=false", "+enable_model_summary=false"),
    ]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose("mocov2_banded", [*small, f"checkpoint.dir={tmp_path}/runs"])
    pretrain(cfg)
    (folder,) = (tmp_path / "runs" / "mocov2_banded").iterdir()
    settings = ["queries=100", "negatives=200", "percentiles=20", "device=cpu", "tsne=false"]
    found = analyze([folder], settings)
    assert [*found.groups] == ["MoCo v2: hardest_5"]
    (one,) = found.studies
    assert one.scalars["same_class/hardest_5"] > 2 * one.scalars["same_class/easiest_95"]
    assert one.info["projector"] is True
    assert (folder / "analysis" / "figure4a.png").is_file()
