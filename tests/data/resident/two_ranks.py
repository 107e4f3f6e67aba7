"""Two DDP processes train on resident views: ``python two_ranks.py FOLDER OUTPUT``.

Each checks its batches, and writes the indexes of their images to OUTPUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy
from resident_helpers import load_labels
from test_resident_callback import ENTRIES, SEED, Indexed, Method, loader_of, make_trainer

from solo_hardneg.data.resident.callback import ResidentData
from solo_hardneg.data.resident.images import load_images
from solo_hardneg.data.resident.recipe import pretrain_recipes
from solo_hardneg.data.resident.views import ResidentViews


def main(folder: str, output: str) -> None:
    dataset, method = Indexed(folder), Method()
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = make_trainer(ResidentData(), epochs=1, devices=2, strategy=strategy)
    trainer.fit(method, loader_of(dataset, workers=1, batch=4))
    images, labels = load_images(dataset, torch.device("cpu")), load_labels(dataset)
    views = ResidentViews(images, pretrain_recipes("custom", ENTRIES, False), SEED)
    for epoch, number, (indexes, made, targets) in method.steps:
        expected = views(indexes, trainer.global_rank, epoch, number)
        assert torch.equal(targets, labels[indexes])
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    seen = [step[2][0].tolist() for step in method.steps]
    Path(output, f"{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
