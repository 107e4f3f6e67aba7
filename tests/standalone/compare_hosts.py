"""Compares both hosts: ``python compare_hosts.py FOLDER`` writes ``FOLDER/found.json``.

They get equal weights and batches. ``test_parity.py`` checks the entries.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from integration_helpers import write_images
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from solo.args.pretrain import parse_cfg
from solo.data.pretrain_dataloader import build_transform_pipeline
from solo.methods import METHODS as SOLO
from solo.utils.auto_resumer import AutoResumer
from solo.utils.lars import LARS
from solo.utils.lr_scheduler import LinearWarmupCosineAnnealingLR

import solo_hardneg.host as seam
from solo_hardneg.data.transforms import view_pipeline
from solo_hardneg.standalone import METHODS as STANDALONE
from solo_hardneg.standalone.config import parse_pretrain
from solo_hardneg.standalone.run import linear, pretrain
from solo_hardneg.standalone.training import build_optimizer, warmup_cosine

ROOT = Path(sys.argv[1])
# Keys that one host leaves out of its parsed config.
NOT_COMPARED = {"strategy", "dali", "auto_umap", "debug_augmentations", "num_nodes", "momentum"}


def config(name: str, *overrides: str) -> DictConfig:
    small = [
        *("optimizer.batch_size=4", "data.num_workers=0", "accelerator=cpu"),
        *("+enable_progress_bar=false", "+enable_model_summary=false"),
        f"checkpoint.dir={ROOT}/runs",
    ]
    small += ["method_kwargs.proj_hidden_dim=8"] if name != "linear" else []
    small += ["method_kwargs.pred_hidden_dim=8"] if name == "byol" else []
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(name, [*small, *overrides])
    OmegaConf.set_struct(cfg, False)
    return cfg


def quiet(model: Any) -> Any:
    model.log = model.log_dict = lambda *args, **kwargs: None
    return model


def largest(one: Any, other: Any) -> float:
    """Largest difference between two sequences of tensors."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def differing_keys(solo_cfg: DictConfig, standalone_cfg: DictConfig) -> list[Any]:
    """solo-learn's keys whose values differ in the standalone host, with both values."""
    solo, standalone = (
        json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True), default=str))
        for cfg in (solo_cfg, standalone_cfg)
    )
    found = []
    for key, value in solo.items():
        other = standalone.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            other = {name: other.get(name) for name in value}
        if key not in NOT_COMPARED and value != other:
            found.append((key, value, other))
    return found


def compare_methods(name: str) -> dict[str, Any]:
    """Compares configs, a step with its gradient and buffers, and a moving average."""
    paths = [f"data.train_path={ROOT}", f"data.val_path={ROOT}", "data.suggest.queue_size=64"]
    cfg = config(name, "data=cifar10", *paths)
    solo_cfg, standalone_cfg = parse_cfg(copy.deepcopy(cfg)), parse_pretrain(cfg)
    torch.manual_seed(0)
    models = quiet(SOLO[name](solo_cfg)), quiet(STANDALONE[name](standalone_cfg))
    states = [model.state_dict() for model in models]
    found: dict[str, Any] = {"config": differing_keys(solo_cfg, standalone_cfg)}
    found["keys"] = sorted({*states[0]} ^ {*states[1]})
    models[1].load_state_dict(states[0])
    batch = [torch.arange(4), [torch.randn(4, 3, 32, 32) for _ in range(2)], torch.arange(4)]
    losses = [model.training_step(batch, 0) for model in models]
    found["loss"] = [loss.item() for loss in losses]
    for loss in losses:
        loss.backward()
    grads = [
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        for model in models
    ]
    found["gradient"] = ((grads[0] - grads[1]).norm() / grads[0].norm()).item()
    # Mainly batch statistics and the queue; state_dict() refers to the current values.
    found["state"] = largest(*([state[key] for key in sorted(state)] for state in states))
    if name != "simclr":
        for model in models:
            with torch.no_grad():
                for group in model.learnable_params:
                    for p in group["params"]:
                        p.add_(0.1)
            for pair in model.momentum_pairs:
                model.momentum_updater.update(*pair)
        averages = [
            [p for _, momentum in model.momentum_pairs for p in momentum.parameters()]
            for model in models
        ]
        found["momentum"] = largest(*averages)
    return found


def compare_schedules() -> float:
    """Largest difference of the learning rate in 12 steps, with 4 warm-up steps."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = LinearWarmupCosineAnnealingLR(optimizer, 4, 12, 0.01, 0.001)
    differences = []
    for step in range(12):
        rate = warmup_cosine(step, 0.5, 4, 12, 0.01, 0.001)
        differences.append(abs(schedule.get_last_lr()[0] - rate))
        optimizer.step()
        schedule.step()
    return max(differences)


def compare_lars(exclude: bool) -> float:
    """Largest difference of a layer's parameters after three steps of LARS."""
    kwargs = {"momentum": 0.9, "eta": 0.02, "clip_lr": True, "exclude_bias_n_norm": exclude}
    settings = {"name": "lars", "weight_decay": 0.1, "exclude_bias_n_norm_wd": False}
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    groups = [{"params": layers[1].parameters()}]
    optimizers = [
        LARS(layers[0].parameters(), lr=0.3, weight_decay=0.1, **kwargs),
        build_optimizer(OmegaConf.create({**settings, "kwargs": kwargs}), groups, 0.3),
    ]
    for _ in range(3):
        x = torch.randn(5, 3)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
    return largest(*(layer.parameters() for layer in layers))


def compare_views(dataset: str) -> float:
    """Largest difference between both hosts' views of an image, without randomness."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cfg = config("simclr", "data=cifar10").augmentations
    view = OmegaConf.to_container(cfg, resolve=True)[0]
    view["rrc"]["enabled"], view["crop_size"] = False, 32
    for key in ("color_jitter", "gaussian_blur"):
        view[key]["prob"] = 0.0
    for key in ("grayscale", "solarization", "equalization", "horizontal_flip"):
        view[key]["prob"] = 1.0
    image = Image.fromarray(pixels)
    solo_pipeline = build_transform_pipeline(dataset, OmegaConf.create(view))
    standalone_pipeline = view_pipeline(dataset, view, "")
    return largest([solo_pipeline(image)], [standalone_pipeline(image)])


def args_of(run: Any) -> DictConfig:
    return OmegaConf.create(json.loads((run.folder / "args.json").read_text()))


def move_checkpoints() -> dict[str, Any]:
    """Pretrains one host's class, evaluates it, and loads it into the other host's class."""
    for split in ("train", "val"):
        write_images(ROOT / split, per_class=4, classes=2)
    paths = [
        *("data=custom", f"data.train_path={ROOT}/train", f"data.val_path={ROOT}/val"),
        *("max_epochs=1", "data.suggest.crop_size=32"),
    ]
    found: dict[str, Any] = {}
    for name, methods, others in (
        ("solo to standalone", SOLO, STANDALONE),
        ("standalone to solo", STANDALONE, SOLO),
    ):
        seam.METHODS = dict(methods)
        run = pretrain(config("byol", *paths))
        result = linear(config("linear", *paths, f"pretrained_feature_extractor={run.folder}"))
        model = others["byol"].load_from_checkpoint(run.checkpoint, cfg=args_of(run))
        state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
        same = all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        found[name] = [same, type(model).__module__, result.metrics["val_knn_acc1"]]
    cfg = config("mocov2plus", *paths, "method_kwargs.queue_size=8", "name=found-again")
    run = pretrain(cfg)
    model = SOLO["mocov2plus"].load_from_checkpoint(run.checkpoint, cfg=args_of(run))
    found["pointer"] = model.queue_ptr.item()
    resumer = AutoResumer(f"{ROOT}/runs/mocov2plus", max_hours=1)
    cfg = SOLO["mocov2plus"].add_and_assert_specific_cfg(parse_cfg(cfg))
    found["resumer"] = str(resumer.find_checkpoint(cfg)[0]) == str(run.checkpoint)
    return found


def main() -> None:
    found: dict[str, Any] = {"host": seam.NAME, "checkpoints": move_checkpoints()}
    found |= {name: compare_methods(name) for name in ("byol", "mocov2plus", "simclr")}
    found["schedule"] = compare_schedules()
    found |= {f"LARS, {exclude}": compare_lars(exclude) for exclude in (False, True)}
    datasets = ("cifar10", "cifar100", "imagenet", "custom")
    found |= {f"view of {dataset}": compare_views(dataset) for dataset in datasets}
    (ROOT / "found.json").write_text(json.dumps(found))


main()
